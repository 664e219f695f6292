"""Balances of Payment Kit in our books, so that a reserve needs no other system.

`granted` := what was spent and is reported there + balance there - pending there. The first part is read before the
balance, in one statement: everything that is spent later, or not yet reported, stays subtracted by `spent`. What is
under way at that moment may be subtracted twice, until the next reading; never forgotten.
"""

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Final

import asyncpg
import structlog

from contracts.money import LIMIT
from metering.payment_kit import records
from metering.payment_kit.amounts import AmountError, from_smallest
from metering.payment_kit.circuit import Circuit
from metering.payment_kit.client import PaymentKit, PaymentKitError
from metering.payment_kit.look_up import customer_id
from metering.payment_kit.meter import Meters
from metering.payment_kit.outbox import TransientErrors, customer_did
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
_AT_ONCE: Final = 16
_IDLE_MAX_S: Final = 3600
_ADOPT_MAX: Final = 1000
_NOT_FOUND: Final = 404
_ADOPT_EVERY_S: Final = 300.0
_CLAIM: Final = """
update metering.payment_account p set refresh_at = now() + make_interval(secs => $2)
from (
    select account from metering.payment_account where refresh_at <= now()
        and not exists (select 1 from metering.payment_control where unit <> $3)
    order by refresh_at limit $1
    for update skip locked
) d
where p.account = d.account
returning p.account
"""
_SEEN: Final = """
insert into metering.payment_account (account, did) values ($1, $2) on conflict do nothing
"""
_BEFORE: Final = """
select nextval('metering.payment_reading') as reading, p.customer_id, p.seq as last_seq, p.idle_s,
    coalesce(a.seq, 0) as seq, coalesce(a.held, 0) > 0 as is_running,
    exists (select 1 from metering.payment_control where unit <> $2) as is_other_unit,
    coalesce(a.spent, 0) - coalesce((
        select sum(o.value) from metering.outbox o
        where o.account = p.account and o.kind = 'meter' and o.state <> 'sent'
    ), 0) as reported
from metering.payment_account p left join metering.account a on a.id = p.account
where p.account = $1
"""
_CUSTOMER: Final = "update metering.payment_account set customer_id = $2 where account = $1"
_MIRROR: Final = "select metering.mirror($1, $2, $3, $4, $5, $6, make_interval(secs => $7), $8, $9)"
_PROBLEM: Final = "update metering.payment_account set problem = $2 where account = $1"
_ADOPT: Final = "select metering.adopt_accounts($1)"


@dataclass(slots=True)
class Mirror:
    """Reads balances: of accounts that are due, and on demand."""

    kit: PaymentKit
    meters: Meters
    pool: Pool
    refresh_s: float
    circuit: Circuit
    _reading: "dict[str, asyncio.Task[Decimal]]" = field(default_factory=dict)

    async def refresh(self, account: str) -> Decimal:
        """Read one account's balance now; returns what it has free. Those who ask at the same time share the answer.

        Raises:
            PaymentKitError: Payment Kit does not answer or its answer makes no sense; the books are unchanged.
            asyncpg.PostgresError, OSError, TimeoutError: nothing is known.
        """
        task = self._reading.get(account)
        if task is None:
            task = asyncio.create_task(self._refresh(account))
            self._reading[account] = task
            task.add_done_callback(partial(self._ended, account))
        return await asyncio.shield(task)

    def _ended(self, account: str, task: "asyncio.Task[Decimal]") -> None:
        self._reading.pop(account, None)
        if not task.cancelled():
            task.exception()  # has been logged; nobody may be waiting any more

    async def run(self) -> None:
        """Refresh what is due, until cancelled."""
        loop = asyncio.get_running_loop()
        adopt_at = 0.0
        while True:
            try:
                if loop.time() >= adopt_at:
                    while adopted := await self.pool.fetchval(_ADOPT, _ADOPT_MAX):
                        _log.info("accounts wait for their first balance", accounts=adopted)
                    adopt_at = loop.time() + _ADOPT_EVERY_S
                due = await self._due()
            except TransientErrors as error:
                _log.warning("balances wait", error=type(error).__name__, detail=str(error)[:200])
                due = []
            if not due:
                await asyncio.sleep(0.25)

    async def _due(self) -> list[str]:
        admitted = self.circuit.admits(_AT_ONCE)
        if not admitted:
            return []
        accounts: list[str] = []
        try:
            rows = await self.pool.fetch(_CLAIM, admitted, self.refresh_s, self.meters.unit)
            accounts = [row["account"] for row in rows]
        finally:
            if not accounts:
                self.circuit.unused()
        results = await asyncio.gather(*(self.refresh(account) for account in accounts), return_exceptions=True)
        self.circuit.unused()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, (PaymentKitError, *TransientErrors)):
                raise result
        return accounts

    async def _refresh(self, account: str) -> Decimal:
        try:
            free = await self._read(account)
        except PaymentKitError as error:
            if error.transient:
                self.circuit.failed(error.retry_after_s)
            else:
                self.circuit.unused()
            if error.status == _NOT_FOUND:
                await self.pool.execute(_CUSTOMER, account, None)  # asked for anew next time
            records.REFRESHES.labels(error.reason).inc()
            _log.warning("balance not read", reason=error.reason, status=error.status, detail=error.detail[:200])
            await self.pool.execute(_PROBLEM, account, f"{error.reason} {error.status}")
            raise
        self.circuit.succeeded()
        records.REFRESHES.labels("read").inc()
        return free

    async def _read(self, account: str) -> Decimal:
        await self.pool.execute(_SEEN, account, customer_did(account))
        before = await self.pool.fetchrow(_BEFORE, account, self.meters.unit)
        assert before is not None  # noqa: S101 - made above
        if before["is_other_unit"]:
            raise PaymentKitError("other_unit", detail="credits are in another unit than this process has")
        meter = await self.meters.get()
        customer = before["customer_id"]
        if customer is None:
            customer = await customer_id(self.kit, customer_did(account))
            await self.pool.execute(_CUSTOMER, account, customer)
        # Pending first: a grant that pays a debt between the two readings is then seen too small, never too large.
        owed = _mapping(await self.kit.ask("GET", "/api/meter-events/pending-amount", {"customer_id": customer}))
        summary = _mapping(await self.kit.ask("GET", "/api/credit-grants/summary", {"customer_id": customer}))
        held = _mapping(summary.get(meter.currency_id) or {})
        try:
            pending = from_smallest(owed.get(meter.currency_id), meter.places, owed=True)
            balance = from_smallest(held.get("remainingAmount"), meter.places, owed=False)
        except AmountError as error:
            raise PaymentKitError("wrong_amount", detail=str(error)) from error
        grants = held.get("grantCount")
        if before["reported"] + balance >= LIMIT:
            raise PaymentKitError("wrong_amount", detail="a balance that no account can hold")
        idle_s, next_s = self._schedule(before)
        free: Decimal = await self.pool.fetchval(
            _MIRROR,
            account,
            balance,
            pending,
            before["reported"],
            grants if isinstance(grants, int) and 0 <= grants < 2**31 else 0,
            before["seq"],
            next_s,
            idle_s,
            before["reading"],
        )
        return free

    def _schedule(self, before: asyncpg.Record) -> tuple[int, int]:
        """How long the account has been idle, and when to look again: an idle one ever less often, up to an hour."""
        period = max(1, round(self.refresh_s))
        if before["seq"] != before["last_seq"] or before["is_running"]:
            return 0, period
        idle = min(_IDLE_MAX_S, max(period, before["idle_s"] * 2))
        return idle, idle


def _mapping(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise PaymentKitError("wrong_amount", detail="an answer that is no object")
    return document
