"""Grants while Payment Kit keeps the balances: each is made there, once, and read back.

Payment Kit makes a grant for every POST, so ours carry their id in their metadata and are looked for before they are
made again.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog

from contracts.errors import ErrorCode, HubError
from contracts.money import rounded
from contracts.rpc.metering import AccountsOpen, AccountsOpened, Balance, BalanceGet, Grant
from metering import accounts
from metering.payment_kit import grant_list
from metering.payment_kit.amounts import to_decimal_text
from metering.payment_kit.client import PaymentKit, PaymentKitError
from metering.payment_kit.look_up import customer_id
from metering.payment_kit.meter import Meters
from metering.payment_kit.mirror import Mirror
from metering.payment_kit.outbox import customer_did
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
_AT_ONCE: Final = 8
_PRIORITY: Final = 50
_NAMES: Final = {
    "welcome": "New user bonus credit",
    "top_up": "Top-up",
    "adjustment": "Adjustment",
    "promotional": "Bonus",
}
_NEW: Final = (
    "insert into metering.credit_grant"
    " (id, account, amount, category, reason, granted_by, name, priority, effective_at, expires_at)"
    " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing"
)
_CHANGES_UNIT: Final = """
select exists (select from metering.payment_control where unit <> $1) or exists (
    select from metering.grant_conversion where state in ('running', 'moved') and not dry_run and from_unit <> 'USD'
)
"""
"""Whether a grant that is made now would be in a unit that nobody counts in any more."""
_SAME: Final = "select account = $2 and amount = $3 from metering.credit_grant where id = $1"


@dataclass(frozen=True, slots=True)
class Grants:
    """Answers `grant` and `accounts_open`."""

    kit: PaymentKit
    meters: Meters
    mirror: Mirror
    pool: Pool

    async def grant(self, request: Grant) -> Balance:
        """Give credits at Payment Kit, once per `grant_id`, and read the balance.

        Raises:
            HubError: `invalid_request`; `conflict` when the id was used for another grant; `service_unavailable` when
                Payment Kit does not answer: the same grant may be asked for again.
        """
        accounts.check_name(request.account)
        amount = rounded(request.amount)
        try:
            grant_id = UUID(request.grant_id)
        except ValueError as error:
            raise HubError(ErrorCode.INVALID_REQUEST, "`grant_id` is a UUID.", param="grant_id") from error
        if "\x00" in request.reason + request.granted_by + request.name:
            raise HubError(ErrorCode.INVALID_REQUEST, "NUL cannot be stored.", param="reason")
        _check_times(request)
        if await self.pool.fetchval(_CHANGES_UNIT, self.meters.unit):
            raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "Credits change their unit; give the same grant again later.")
        await self.pool.execute(
            _NEW,
            grant_id,
            request.account,
            amount,
            request.category,
            request.reason,
            request.granted_by,
            request.name,
            request.priority,
            request.effective_at,
            request.expires_at,
        )
        if not await self.pool.fetchval(_SAME, grant_id, request.account, amount):
            raise HubError(ErrorCode.CONFLICT, "This grant id was used for another grant.", param="grant_id")
        try:
            await self._make_once(str(grant_id), request, amount)
            await self.mirror.refresh(request.account)
        except PaymentKitError as error:
            _log.warning("grant not made", reason=error.reason, status=error.status, detail=error.detail[:200])
            raise HubError(
                ErrorCode.SERVICE_UNAVAILABLE, "Payment Kit did not take the grant; give the same grant again."
            ) from error
        return await accounts.balance(self.pool, BalanceGet(account=request.account))

    async def open_many(self, request: AccountsOpen) -> AccountsOpened:
        """A welcome grant for each account, made once however often it is asked for.

        Raises:
            HubError: see `grant`; some accounts may have theirs.
        """
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(account: str) -> None:
            async with at_once:
                await self.grant(
                    Grant(
                        grant_id=str(uuid5(NAMESPACE_URL, f"welcome:{account}")),
                        account=account,
                        amount=request.amount,
                        category="welcome",
                        granted_by=request.granted_by,
                        expires_at=request.expires_at,
                    )
                )

        distinct = dict.fromkeys(request.accounts)
        await asyncio.gather(*map(one, distinct))
        return AccountsOpened(opened=len(distinct))

    async def _make_once(self, grant_id: str, request: Grant, amount: Decimal) -> None:
        if amount == 0:
            return
        meter = await self.meters.get()
        customer = await customer_id(self.kit, customer_did(request.account))
        if await self._is_made(grant_id, customer):
            return
        wanted: dict[str, Any] = {
            "customer_id": customer,
            "currency_id": meter.currency_id,
            "amount": to_decimal_text(amount),
            "name": request.name or request.reason or _NAMES[request.category],
            "expires_at": 0 if request.expires_at is None else int(request.expires_at.timestamp()),
            "category": "paid" if request.category == "top_up" else "promotional",
            "metadata": {"grantId": grant_id} | ({"welcomeCredit": True} if request.category == "welcome" else {}),
        }
        if request.priority != _PRIORITY:
            wanted["priority"] = request.priority
        if request.effective_at is not None:
            wanted["effective_at"] = int(request.effective_at.timestamp())
        await self.kit.ask("POST", "/api/credit-grants", body=wanted)

    async def _is_made(self, grant_id: str, customer: str) -> bool:
        """Whether Payment Kit has it; in whichever unit, since a conversion takes the id over into the new one."""
        async for page in grant_list.pages(self.kit, {"customer_id": customer}):
            if any(found.metadata.get("grantId") == grant_id for found in page):
                return True
        return False


def _check_times(request: Grant) -> None:
    """Refuse what the built-in ledger refuses, too: an end that is over, or that lies before the beginning.

    Raises:
        HubError: `invalid_request`.
    """
    ends, begins = request.expires_at, request.effective_at
    if ends is not None and ends <= datetime.now(UTC):
        raise HubError(ErrorCode.INVALID_REQUEST, "This time is over; give one that is to come.", param="expires_at")
    if ends is not None and begins is not None and ends <= begins:
        raise HubError(ErrorCode.INVALID_REQUEST, "A grant ends after it begins.", param="expires_at")
