"""Moves grants of one customer into another unit: the new grant is made once, then the old one is ended.

Payment Kit makes a grant for every POST, so each new one names the old one and is looked for before it is made. Whoever
asks for it first writes down when; nobody asks again while Payment Kit may still work on that, whoever has died.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog

from metering.payment_kit import grant_list
from metering.payment_kit.amounts import AmountError, from_smallest
from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.grant_list import OPEN, ListedGrant
from metering.payment_kit.grant_units import Worth, ended_grant, new_grant, worth
from metering.payment_kit.meter import Meter
from runtime import failpoints

_log = structlog.get_logger("grant_conversion")
IN_DOUBT: Final = "in_doubt"
"""Payment Kit may still be making the new grant: look again later."""
TOO_LITTLE: Final = "too_little"
"""Worth nothing in the new unit: it is left as it is."""
_TOO_MANY_REQUESTS: Final = 429
_CLAIM: Final = """
insert into metering.moved_grant (livemode, grant_id, conversion, customer_id, before, after, tried_at)
values ($1, $2, $3, $4, $5, $6, clock_timestamp())
on conflict (livemode, grant_id) do update
    set conversion = excluded.conversion, before = excluded.before, after = excluded.after, tried_at = clock_timestamp()
    where moved_grant.tried_at is null or moved_grant.tried_at < clock_timestamp() - $7::interval
returning tried_at
"""
_UNTRIED: Final = "update metering.moved_grant set tried_at = null where livemode = $1 and grant_id = $2"
_ENDED: Final = """
insert into metering.moved_grant (livemode, grant_id, conversion, customer_id, before, after, new_grant_id, ended_at)
values ($1, $2, $3, $4, $5, $6, $7, now())
on conflict (livemode, grant_id) do update
    set conversion = excluded.conversion, new_grant_id = excluded.new_grant_id, ended_at = now()
"""
_FOUND_ENDED: Final = """
update metering.moved_grant m set new_grant_id = u.new_grant_id, ended_at = now()
from unnest($2::text[], $3::text[]) u(grant_id, new_grant_id)
where m.livemode = $1 and m.grant_id = u.grant_id and m.conversion = $4 and m.ended_at is null
"""
_HINT: Final = "update metering.payment_account set refresh_at = now() where customer_id = $1"


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a grant."""

    grant: ListedGrant
    value: Worth
    problem: str = ""
    """Why it is where it was; empty = it was moved."""


@dataclass(slots=True)
class Mover:
    """Moves grants for one conversion, over the connection that keeps others from doing so."""

    kit: PaymentKit
    connection: "asyncpg.Connection[asyncpg.Record]"
    conversion: UUID
    price: Decimal
    old: Meter
    new: Meter
    in_doubt: timedelta
    """How long Payment Kit may work on what it was asked."""
    _statement: asyncio.Lock = field(default_factory=asyncio.Lock)

    def worth(self, grant: ListedGrant) -> Worth:
        """What a grant comes to."""
        return worth(grant.remaining, self.old.places, self.price)

    async def customer(self, customer_id: str, grants: Sequence[ListedGrant]) -> list[Moved]:
        """Move these grants of a customer.

        Raises:
            PaymentKitError: Payment Kit is away; what was begun is found again.
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: the books are away, our turn is over.
        """
        values = [self.worth(grant) for grant in grants]
        problem = await self._unready(customer_id)
        if problem:
            return [Moved(grant, value, problem) for grant, value in zip(grants, values, strict=True)]
        made = await self._made(customer_id)
        done = [
            await self._move(grant, value, grant.moved_to or made.get(grant.id, ""))
            for grant, value in zip(grants, values, strict=True)
        ]
        if any(not one.problem for one in done):
            async with self._statement:
                await self.connection.execute(_HINT, customer_id)
        return done

    async def found_ended(self, grants: Sequence[ListedGrant]) -> None:
        """Note which grants that this conversion began to move have ended: whoever ended them may not have come to it.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: as above.
        """
        ended = [grant for grant in grants if grant.moved_to and grant.status not in OPEN]
        if ended:
            ids, new_ids = [grant.id for grant in ended], [grant.moved_to for grant in ended]
            await self._write(_FOUND_ENDED, self.kit.livemode, ids, new_ids, self.conversion)

    async def _unready(self, customer_id: str) -> str:
        """Why a customer's grants cannot be moved now; usage that they have not paid yet would be forgotten."""
        owed = await self.kit.ask("GET", "/api/meter-events/pending-amount", {"customer_id": customer_id})
        try:
            amount = owed.get(self.old.currency_id) if isinstance(owed, dict) else "no object"
            pending = from_smallest(amount, self.old.places, owed=True)
        except AmountError:
            return "unreadable"
        return "usage_pending" if pending else ""

    async def _made(self, customer_id: str) -> dict[str, str]:
        """New grants that were made for old ones; by the old one's id."""
        found: dict[str, str] = {}
        query: dict[str, str | int | None] = {"customer_id": customer_id, "currency_id": self.new.currency_id}
        async for page in grant_list.pages(self.kit, query):
            for grant in page:
                if grant.moved_from and grant.currency_id == self.new.currency_id:
                    found.setdefault(grant.moved_from, grant.id)
        return found

    async def _move(self, grant: ListedGrant, value: Worth, made: str) -> Moved:
        new_id, problem = made, ""
        if not new_id and value.problem:
            return Moved(grant, value, value.problem)
        if not new_id:
            new_id, problem = await self._make(grant, value)
        if not problem:
            failpoints.hit("metering.after_grant_made")
            problem = await self._end(grant, value, new_id)
        if problem:
            _log.warning("grant not moved", grant=grant.id, problem=problem)
        return Moved(grant, value, problem)

    async def _make(self, grant: ListedGrant, value: Worth) -> tuple[str, str]:
        """The new grant's id, or why there is none."""
        claimed = await self._claimed(grant, value)
        if not claimed:
            return "", IN_DOUBT
        failpoints.hit("metering.before_grant_made")
        wanted = new_grant(grant, value, self.new.currency_id, self.price, datetime.now(UTC))
        try:
            answer = await self.kit.ask("POST", "/api/credit-grants", body=wanted)
        except PaymentKitError as error:
            if not error.was_sent or error.status == _TOO_MANY_REQUESTS:
                await self._untried(grant)
                raise
            if error.reason == "refused" and not error.transient:
                await self._untried(grant)
                return "", f"refused {error.status} {error.detail}".strip()
            _log.warning("answer lost", grant=grant.id, reason=error.reason, status=error.status)
            answer = None
        new_id = answer.get("id") if isinstance(answer, dict) else None
        if isinstance(new_id, str) and new_id:
            return new_id, ""
        new_id = (await self._made(grant.customer_id)).get(grant.id, "")
        return new_id, "" if new_id else IN_DOUBT

    async def _end(self, grant: ListedGrant, value: Worth, new_id: str) -> str:
        """End the old grant; returns why it goes on. What the answer looks like is not recorded: it is looked at."""
        path = f"/api/credit-grants/{part(grant.id)}"
        try:
            await self.kit.ask("PUT", path, body=ended_grant(grant, new_id))
        except PaymentKitError as error:
            if not error.was_sent:
                raise
            _log.warning("old grant may go on", grant=grant.id, reason=error.reason, status=error.status)
        if (await grant_list.one(self.kit, grant.id)).status in OPEN:
            return "not_ended"
        await self._write(_ENDED, *self._row(grant, value), new_id)
        return ""

    async def _claimed(self, grant: ListedGrant, value: Worth) -> bool:
        async with self._statement:
            found: Any = await self.connection.fetchval(_CLAIM, *self._row(grant, value), self.in_doubt)
        return found is not None

    async def _untried(self, grant: ListedGrant) -> None:
        await self._write(_UNTRIED, self.kit.livemode, grant.id)

    async def _write(self, statement: str, *values: Any) -> None:
        async with self._statement:
            await self.connection.execute(statement, *values)

    def _row(self, grant: ListedGrant, value: Worth) -> tuple[Any, ...]:
        return self.kit.livemode, grant.id, self.conversion, grant.customer_id, value.before, value.after
