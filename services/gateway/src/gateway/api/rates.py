"""`/api/admin/rates…`: what models cost, for owners and administrators."""

from typing import Annotated, Final, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from contracts.errors import ErrorCode, HubError
from contracts.rpc import catalog, rate_changes, rate_rows
from contracts.rpc.envelope import PRINTABLE
from contracts.usage import RateType
from gateway.api.bodies import reads
from gateway.api.services import Caller, Used

_LONG_S: Final = 45.0
_PATTERN_MAX: Final = 200
A = TypeVar("A", bound=BaseModel)
Part = Annotated[str | None, Query(max_length=_PATTERN_MAX, description="Only patterns that contain this text.")]
Exactly = Annotated[str | None, Query(max_length=_PATTERN_MAX, pattern=PRINTABLE, description="Of this pattern only.")]
Limit = Annotated[int, Query(ge=1, le=rate_changes.HISTORY_MAX)]
Before = Annotated[
    int | None, Query(ge=1, le=rate_changes.VERSION_MAX, description="Only versions older than this one.")
]
IncludeDeprecated = Annotated[bool, Query(alias="includeDeprecated")]


async def listed(used: Used, pattern: Part = None, *, deprecated: IncludeDeprecated = False) -> rate_changes.RatesPage:
    """Rates in force, the most specific first."""
    asked = rate_changes.RatesList(pattern=pattern, deprecated=deprecated)
    return await used.peers.ask_catalog(rate_changes.RATES_LIST, asked, rate_changes.RatesPage)


async def history(
    used: Used, pattern: Exactly = None, limit: Limit = 50, before: Before = None
) -> rate_changes.RateVersions:
    """Rate versions, newest first: who changed what, when and why."""
    asked = rate_changes.RatesHistory(pattern=pattern, limit=limit, before=before)
    return await used.peers.ask_catalog(rate_changes.RATES_HISTORY, asked, rate_changes.RateVersions)


async def set_rates(
    used: Used, principal: Caller, body: Annotated[rate_changes.RatesSet, Depends(reads(rate_changes.RatesSet))]
) -> catalog.RateView:
    """Add a version of a pattern's rates. `expected_version` is the one that it replaces, 0 for the first."""
    _has_version(body.expected_version)
    return await used.peers.ask_catalog(rate_changes.RATES_SET, _by(body, principal.user), catalog.RateView)


async def remove(
    used: Used,
    principal: Caller,
    pattern: Annotated[str, Query(min_length=1, max_length=_PATTERN_MAX, pattern=PRINTABLE)],
    expected_version: Annotated[int, Query(ge=1, le=rate_changes.VERSION_MAX, description="The one that you saw.")],
    of_type: Annotated[RateType, Query(alias="type")] = RateType.CHAT,
    effective_at: Annotated[str | None, Query(max_length=40)] = None,
) -> rate_rows.RateRemoved:
    """Take a pattern's rates away, from now or later on. Their history stays."""
    asked = rate_rows.RatesRemove(
        pattern=pattern,
        type=of_type,
        expected_version=expected_version,
        effective_at=effective_at,
        changed_by=principal.user,
    )
    return await used.peers.ask_catalog(rate_rows.RATES_REMOVE, asked, rate_rows.RateRemoved)


async def deprecate(
    used: Used,
    principal: Caller,
    body: Annotated[rate_changes.RatesDeprecate, Depends(reads(rate_changes.RatesDeprecate))],
) -> catalog.RateView:
    """Take models out of lists and service, or put them back."""
    _has_version(body.expected_version)
    return await used.peers.ask_catalog(rate_changes.RATES_DEPRECATE, _by(body, principal.user), catalog.RateView)


async def sync(
    used: Used, principal: Caller, body: Annotated[rate_changes.RatesSync, Depends(reads(rate_changes.RatesSync))]
) -> rate_changes.RatesChanged:
    """Take unit costs from the price package over into the rates."""
    return await used.peers.ask_catalog(
        rate_changes.RATES_SYNC, _by(body, principal.user), rate_changes.RatesChanged, _LONG_S
    )


async def margin(
    used: Used, principal: Caller, body: Annotated[rate_changes.RatesMargin, Depends(reads(rate_changes.RatesMargin))]
) -> rate_changes.RatesChanged:
    """Compute imported rates again with another margin."""
    return await used.peers.ask_catalog(
        rate_changes.RATES_MARGIN, _by(body, principal.user), rate_changes.RatesChanged, _LONG_S
    )


async def check(
    used: Used, principal: Caller, body: Annotated[rate_changes.RatesCheck, Depends(reads(rate_changes.RatesCheck))]
) -> rate_changes.CheckReport:
    """Compare rates with what vendors take now; small changes may be applied, large ones are proposed."""
    return await used.peers.ask_catalog(
        rate_changes.RATES_CHECK, _by(body, principal.user), rate_changes.CheckReport, _LONG_S
    )


async def proposals(used: Used) -> rate_changes.Proposals:
    """Rate changes that wait for approval."""
    return await used.peers.ask_catalog(
        rate_changes.RATES_PROPOSALS, rate_changes.RatesProposals(), rate_changes.Proposals
    )


async def decide(
    used: Used, principal: Caller, body: Annotated[rate_changes.RatesDecide, Depends(reads(rate_changes.RatesDecide))]
) -> rate_changes.Decided:
    """Approve or refuse a proposed change, once."""
    return await used.peers.ask_catalog(rate_changes.RATES_DECIDE, _by(body, principal.user), rate_changes.Decided)


def _by(body: A, user: str) -> A:
    """The question in the name of whoever asks, whatever the body says."""
    return body.model_copy(update={"changed_by": user})


def _has_version(expected: int | None) -> None:
    if expected is None:
        raise HubError(
            ErrorCode.INVALID_REQUEST,
            "Name the version that you saw as `expected_version` (0 for a pattern without rates): if somebody changed "
            "it meanwhile, nothing is overwritten.",
            param="expected_version",
        )
