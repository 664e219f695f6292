"""Answers about converting the unit of grants: starts, tells, finishes. The work itself is `conversion_run`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn
from uuid import UUID

import asyncpg
import structlog

from contracts.errors import ErrorCode, HubError
from contracts.ids import new_call_id
from contracts.money import parse, to_text
from contracts.rpc.grant_conversion import (
    GrantProblem,
    GrantsConversion,
    GrantsConversionGet,
    GrantsConvert,
    GrantsConvertFinish,
    GrantsUnit,
    GrantsUnitGet,
    UnitMeter,
)
from metering.ledger.converted import exact_text
from metering.payment_kit import grant_list
from metering.payment_kit.client import PaymentKit, PaymentKitError
from metering.payment_kit.grant_units import is_open
from metering.payment_kit.meter import Meter, Meters, event_name_of, existing
from metering.payment_kit.settings import PaymentKitSettings
from metering.times import iso_ms
from runtime.postgres import Pool

_log = structlog.get_logger("grant_conversion")
KNOWN_S: Final = 5.0
"""After this long every metering knows that a conversion is open, and refuses reserves."""
_UNIT_S: Final = 30.0
_CONNECT_S: Final = 5.0
_SESSION: Final = {"application_name": "metering-conversion", "jit": "off", "statement_timeout": "60000"}
_OPEN: Final = """
select * from metering.grant_conversion where state in ('running', 'moved') and not dry_run
"""
_START: Final = """
insert into metering.grant_conversion (id, price, dry_run, from_unit, state, wait_s)
values ($1, $2, $3, $4, 'running', $5) on conflict do nothing
"""
_GO_ON: Final = """
update metering.grant_conversion set state = 'running', error = '', wait_s = $2
where id = $1 and state = 'moved'
"""
_BLOCKED: Final = """
select count(*) filter (where state = 'parked') as parked, count(*) filter (where state = 'pending') as pending,
    (select paused from metering.payment_control) as paused
from metering.outbox where state <> 'sent'
"""
_GET: Final = f"""
select c.*, case when c.from_unit = 'USD' or c.dry_run then 0 else (
    select count(*) from metering.model_call m
    where m.id >= metering.id_bound(c.started_at + interval '{KNOWN_S} s')
        and m.id < metering.id_bound(coalesce(c.finished_at, now() + interval '1 day'))) end as late
from metering.grant_conversion c where c.id = $1
"""  # noqa: S608 - our own number
_AT_REST: Final = """
select (select count(*) from metering.account where held > 0) as running,
    (select count(*) from metering.outbox where state <> 'sent' and batch is null) as unsent
"""
_FINISH: Final = """
update metering.grant_conversion set state = 'finished', finished_at = now()
where id = $1 and state = 'moved' and error = ''
"""
_CHANGE_UNIT: Final = "select metering.change_unit($1)"


@dataclass(frozen=True, slots=True)
class GrantConversions:
    """Answers the questions about conversions of grants."""

    kit: PaymentKit
    meters: Meters
    pool: Pool
    settings: PaymentKitSettings

    async def start(self, request: GrantsConvert) -> GrantsConversion:
        """Open a conversion, or go on with the one that is open; it runs from now on.

        Raises:
            HubError: `conflict` when another one is open, charges cannot be reported, or a meter is missing;
                `service_unavailable` when Payment Kit does not answer.
        """
        unit = self.settings.payment_kit_unit
        if request.in_new_unit and unit != "USD":
            raise HubError(
                ErrorCode.CONFLICT,
                "This hub still counts in the older unit: `hub credits convert` changes its rates, too.",
            )
        found = None if request.dry_run else await self.pool.fetchrow(_OPEN)
        if found is None:
            await self._check(is_dry=request.dry_run)
            new_id = UUID(new_call_id())
            await self.pool.execute(_START, new_id, parse(request.price), request.dry_run, unit, request.wait_s)
            found = await self.pool.fetchrow(_OPEN) if not request.dry_run else None
            if found is None:
                return await self._told(new_id)
        if found["price"] != parse(request.price):
            raise HubError(
                ErrorCode.CONFLICT,
                f"A conversion at {exact_text(found['price'])} is open; finish that one first.",
                param="price",
            )
        if found["state"] == "moved" and (found["errors"] or found["error"]):
            await self.pool.execute(_GO_ON, found["id"], request.wait_s)
        return await self._told(found["id"])

    async def get(self, request: GrantsConversionGet) -> GrantsConversion:
        """How it stands.

        Raises:
            HubError: `not_found`.
        """
        try:
            return await self._told(UUID(request.conversion_id))
        except ValueError:
            _unknown()

    async def finish(self, _request: GrantsConvertFinish) -> GrantsConversion:
        """Charges are in the newer unit from now on, and calls are admitted again.

        Raises:
            HubError: `not_found`; `conflict` while it is not done, calls or reports are left, or this process counts in
                the older unit.
        """
        found = await self.pool.fetchrow(_OPEN)
        if found is None:
            raise HubError(ErrorCode.NOT_FOUND, "No conversion of grants is open.")
        if found["state"] != "moved" or found["error"]:
            why = found["error"] or "it still runs"
            raise HubError(ErrorCode.CONFLICT, f"The conversion is not done: {why}. Give --apply again.")
        if self.settings.payment_kit_unit != "USD":
            raise HubError(ErrorCode.CONFLICT, "Restart the hub with HUB_PAYMENT_KIT_UNIT=USD first.")
        async with connected(self.settings.database_url.get_secret_value()) as connection, connection.transaction():
            rest = await connection.fetchrow(_AT_REST)
            assert rest is not None  # noqa: S101 - counts
            if rest["running"] or rest["unsent"]:
                raise HubError(
                    ErrorCode.CONFLICT,
                    f"Calls of {rest['running']} accounts run, and {rest['unsent']} charges are not reported yet.",
                )
            if await connection.execute(_FINISH, found["id"]) != "UPDATE 1":
                raise HubError(ErrorCode.CONFLICT, "The conversion goes on meanwhile; ask how it stands.")
            await connection.execute(_CHANGE_UNIT, "USD")
        _log.warning("credits have changed their unit", unit="USD")
        return await self._told(found["id"])

    async def unit(self, _request: GrantsUnitGet) -> GrantsUnit:
        """Meters of both units, and what is left in the older one."""
        new_unit, price = self.settings.payment_kit_unit == "USD", to_text(self.settings.credit_price)
        try:
            async with asyncio.timeout(_UNIT_S):
                old, new = await existing(self.kit, "credits"), await existing(self.kit, "USD")
                total, left = (0, 0) if old is None else await self._count(old)
        except (PaymentKitError, TimeoutError) as error:
            _log.warning("units not told", error=type(error).__name__, detail=str(error)[:200])
            return GrantsUnit(payment_running=False, in_new_unit=new_unit, credit_price=price)
        return GrantsUnit(
            payment_running=True,
            in_new_unit=new_unit,
            old_meter=_shown(old),
            new_meter=_shown(new),
            total_grants=total,
            unmigrated_grants=left,
            credit_price=price,
        )

    async def _count(self, old: Meter) -> tuple[int, int]:
        now, total, left = int(time.time()), 0, 0
        async for page in grant_list.pages(self.kit, {"currency_id": old.currency_id}):
            ours = [grant for grant in page if grant.currency_id == old.currency_id]
            total += len(ours)
            left += sum(is_open(grant, now) and not grant.moved_to for grant in ours)
        return total, left

    async def _check(self, *, is_dry: bool) -> None:
        """Refuse what cannot succeed before any call is refused.

        Raises:
            HubError: `conflict`, `service_unavailable`.
        """
        if not is_dry:
            row = await self.pool.fetchrow(_BLOCKED)
            assert row is not None  # noqa: S101 - counts
            if row["parked"]:
                raise HubError(ErrorCode.CONFLICT, f"{row['parked']} reports are parked: see `hub payments status`.")
            if row["pending"] and (row["paused"] or self.settings.payment_kit_paused):
                raise HubError(
                    ErrorCode.CONFLICT, f"Reporting is paused, and {row['pending']} charges are not reported yet."
                )
        try:
            await self.both()
        except PaymentKitError as error:
            if error.reason == "no_meter":
                raise HubError(ErrorCode.CONFLICT, error.detail) from error
            raise HubError(
                ErrorCode.SERVICE_UNAVAILABLE, "Payment Kit does not answer as it should; try again later."
            ) from error

    async def both(self) -> tuple[Meter, Meter]:
        """The meters of the older and of the newer unit; that of the newer is made if need be.

        Raises:
            PaymentKitError: Payment Kit does not answer; `no_meter` when there is no older one, or one is not active.
        """
        old = await existing(self.kit, "credits")
        if old is None:
            name = event_name_of("credits")
            raise PaymentKitError("no_meter", detail=f"Payment Kit has no meter {name}: there is nothing to convert.")
        newer = self.meters if self.meters.unit == "USD" else Meters(self.kit, "USD", self.pool)
        await newer.get()
        new = await existing(self.kit, "USD")
        if new is None or new.status != "active":
            raise PaymentKitError("no_meter", detail=f"The meter {newer.event_name} is not active at Payment Kit.")
        if new.currency_id == old.currency_id:
            raise PaymentKitError("no_meter", detail="Both meters have one currency: there is nothing to convert.")
        return old, new

    async def _told(self, conversion: UUID) -> GrantsConversion:
        row = await self.pool.fetchrow(_GET, conversion)
        if row is None:
            _unknown()
        return told(row)


@asynccontextmanager
async def connected(dsn: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A connection of its own: statements about every account take longer than those of the pool may."""
    connection = await asyncpg.connect(dsn, timeout=_CONNECT_S, server_settings=_SESSION)
    try:
        yield connection
    finally:
        connection.terminate()


def told(row: asyncpg.Record) -> GrantsConversion:
    """A row of `grant_conversion`, with `late`."""
    return GrantsConversion(
        conversion_id=str(row["id"]),
        price=exact_text(row["price"]),
        dry_run=row["dry_run"],
        changes_unit=row["from_unit"] != "USD",
        state=row["state"],
        error=row["error"],
        started_at=iso_ms(row["started_at"]),
        finished_at=None if row["finished_at"] is None else iso_ms(row["finished_at"]),
        total=row["total"],
        migrated=row["migrated"],
        skipped=row["skipped"],
        errors=row["errors"],
        before=exact_text(row["before"]),
        after=exact_text(row["after"]),
        problems=tuple(GrantProblem.model_validate(problem) for problem in json.loads(row["problems"])),
        late=row["late"],
    )


def _shown(meter: Meter | None) -> UnitMeter | None:
    if meter is None:
        return None
    return UnitMeter(
        id=meter.id, name=meter.name, status=meter.status, currency_id=meter.currency_id, decimal=meter.places
    )


def _unknown() -> NoReturn:
    raise HubError(ErrorCode.NOT_FOUND, "There is no such conversion.", param="conversion_id")
