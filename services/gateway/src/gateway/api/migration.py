"""`/api/migration/…`: grants that Payment Kit holds in the older unit, for owners and administrators.

Paths and names are the original's. Amounts and prices are decimal strings.
"""

import asyncio
from decimal import Decimal
from typing import Annotated, Final

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from contracts.errors import ErrorCode, HubError
from contracts.rpc import grant_conversion as g
from contracts.rpc.rate_changes import CREDIT_PRICE_LIMIT, CREDIT_PRICE_MIN
from gateway.api.bodies import reads
from gateway.api.services import Caller, Used

_REST_S: Final = 20.0
"""Longest wait for running calls and unsent reports to end."""
_LONG_S: Final = 60.0
"""Longest time in which a request waits for the conversion's end."""
_LOOK_S: Final = 0.25


class GrantsBody(BaseModel):
    """What one credit of the older unit is worth in the newer one."""

    model_config = ConfigDict(extra="forbid")

    baseCreditPrice: Decimal = Field(  # noqa: N815 - the original's name
        ge=CREDIT_PRICE_MIN, lt=CREDIT_PRICE_LIMIT, allow_inf_nan=False, max_digits=40
    )
    dryRun: bool = False  # noqa: N815 - as the other names
    """Only tell what would become of each grant; calls go on."""


class Summary(BaseModel):
    """Grants of the older unit: `total` = `migrated` + `skipped` + `errors`."""

    total: int
    processed: int
    migrated: int
    skipped: int
    errors: int


class Problem(BaseModel):
    """A grant that stayed as it was."""

    grantId: str  # noqa: N815 - as the original's names
    customerId: str  # noqa: N815 - as the original's names
    problem: str


class Migrated(BaseModel):
    """What became of the grants; `before` and `after` are sums in old and in new credits."""

    success: bool
    summary: Summary
    before: str
    after: str
    error: str = Field(description="Why it ended before it had looked at all; empty = it had.")
    problems: list[Problem] = Field(description="The first hundred.")


class MeterView(BaseModel):
    """A meter as Payment Kit has it."""

    id: str
    name: str
    status: str
    currencyId: str  # noqa: N815 - the original's name
    decimal: int


class MigrationStatus(BaseModel):
    """Meters of both units, and what is left in the older one; null where there is no such meter."""

    paymentRunning: bool  # noqa: N815 - the original's name
    migrationEnabled: bool = Field(description="The hub counts in the newer unit.")  # noqa: N815 - the original's name
    oldMeter: MeterView | None  # noqa: N815 - the original's name
    newMeter: MeterView | None  # noqa: N815 - the original's name
    totalGrantCount: int  # noqa: N815 - the original's name
    unmigratedGrantCount: int  # noqa: N815 - the original's name
    baseCreditPrice: str  # noqa: N815 - the original's name


async def grants(used: Used, _principal: Caller, body: Annotated[GrantsBody, Depends(reads(GrantsBody))]) -> Migrated:
    """Make every open grant of the older unit one of the newer; calls are refused with 503 meanwhile.

    The same request joins a conversion that runs. `success` is false when some grants stayed as they were.
    """
    asked = g.GrantsConvert(
        price=format(body.baseCreditPrice, "f"), dry_run=body.dryRun, in_new_unit=True, wait_s=_REST_S
    )
    found = await used.peers.long(g.GRANTS_CONVERT, asked, g.GrantsConversion)
    until = asyncio.get_running_loop().time() + _LONG_S
    while found.state == "running":
        if asyncio.get_running_loop().time() > until:
            raise HubError(
                ErrorCode.SERVICE_UNAVAILABLE, "The conversion goes on; send the same request again.", retry_after_s=5
            )
        await asyncio.sleep(_LOOK_S)
        again = g.GrantsConversionGet(conversion_id=found.conversion_id)
        found = await used.peers.long(g.GRANTS_CONVERSION, again, g.GrantsConversion)
    if found.state == "failed":
        raise HubError(ErrorCode.CONFLICT, f"No grant was moved: {found.error}.")
    done = found.migrated + found.skipped + found.errors
    return Migrated(
        success=not found.errors and not found.error,
        summary=Summary(
            total=found.total,
            processed=done,
            migrated=found.migrated,
            skipped=found.skipped,
            errors=found.errors,
        ),
        before=found.before,
        after=found.after,
        error=found.error,
        problems=[
            Problem(grantId=one.grant_id, customerId=one.customer_id, problem=one.problem) for one in found.problems
        ],
    )


async def status(used: Used, _principal: Caller) -> MigrationStatus:
    """How the two units stand."""
    told = await used.peers.long(g.GRANTS_UNIT, g.GrantsUnitGet(), g.GrantsUnit)
    return MigrationStatus(
        paymentRunning=told.payment_running,
        migrationEnabled=told.in_new_unit,
        oldMeter=_meter(told.old_meter),
        newMeter=_meter(told.new_meter),
        totalGrantCount=told.total_grants,
        unmigratedGrantCount=told.unmigrated_grants,
        baseCreditPrice=told.credit_price,
    )


def _meter(meter: g.UnitMeter | None) -> MeterView | None:
    if meter is None:
        return None
    return MeterView(
        id=meter.id, name=meter.name, status=meter.status, currencyId=meter.currency_id, decimal=meter.decimal
    )
