"""`/api/ai-providers/…model-rates`: rates by provider and model, in the original's shapes.

A rate is named by the id of the version that somebody saw: whoever changes or removes it by an older id gets a 409, so
nobody overwrites what they have not seen.
"""

from typing import Annotated, Final, Literal

from fastapi import Depends, Path, Query
from pydantic import BaseModel

from contracts.errors import ErrorCode, HubError
from contracts.rpc import envelope, rate_rows
from contracts.usage import RateType
from gateway.api import rate_shapes as shapes
from gateway.api.bodies import reads
from gateway.api.services import Caller, Used
from gateway.api.user_credit import PageNumber, PageSize, Paging

_TEXT_MAX: Final = 200
_KEYS: Final[dict[str, Literal["provider", "model", "type", "display", "description"]]] = {
    "provider": "provider",
    "providerId": "provider",
    "model": "model",
    "modelDisplay": "display",
    "type": "type",
    "description": "description",
}
"""Names in `q` → fields."""
_PART: Final = "like."
_SEVERAL: Final = r"^[a-z0-9][a-z0-9_-]*(,[a-z0-9][a-z0-9_-]*)*$"
Text = Annotated[str | None, Query(max_length=_TEXT_MAX, pattern=envelope.PRINTABLE)]
Providers = Annotated[
    str | None,
    Query(alias="providerId", max_length=_TEXT_MAX, pattern=_SEVERAL, description="With commas between them."),
]
Provider = Annotated[str, Path(pattern=shapes.PROVIDER)]
RateId = Annotated[str, Path(max_length=_TEXT_MAX, pattern=envelope.PRINTABLE)]
Order = Annotated[Literal["asc", "desc"], Query(alias="o", description="By provider and model.")]
IncludeDeprecated = Annotated[bool, Query(alias="includeDeprecated")]
Type = Annotated[RateType | None, Query(alias="type")]
EffectiveAt = Annotated[str | None, Query(max_length=40, description="In the future; at once when absent.")]
Q = Annotated[
    str | None,
    Query(
        max_length=_TEXT_MAX,
        pattern=envelope.PRINTABLE,
        description="Conditions `key:value` with spaces between them; `a,b` means one of them, `like.a` a part. Keys"
        " are providerId, model, modelDisplay, type and description.",
    ),
]


class RatesList(BaseModel):
    """A page of rates."""

    count: int
    list: list[shapes.ShownRate]
    paging: Paging


class RateRemoved(BaseModel):
    """What became of the price of a model whose rate was removed."""

    message: str
    version: int
    effectiveAt: str  # noqa: N815 - as the original writes names
    now: str | None
    """The pattern whose rates count now; null: the model has no price and is not served."""


async def listed(
    used: Used,
    providers: Providers = None,
    model: Text = None,
    of_type: Type = None,
    q: Q = None,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    order: Order = "asc",
    *,
    deprecated: IncludeDeprecated = False,
) -> RatesList:
    """Rates in force, page by page."""
    wanted = list(_conditions(q))
    if providers:
        wanted.append(rate_rows.Wanted(field="provider", values=_several(providers)))
    if model:
        wanted.append(rate_rows.Wanted(field="model", values=(model,), part=True))
    if of_type:
        wanted.append(rate_rows.Wanted(field="type", values=(of_type,)))
    asked = rate_rows.RatesFind(
        wanted=tuple(wanted), deprecated=deprecated, descending=order == "desc", page=page, page_size=page_size
    )
    found = await used.peers.ask_catalog(rate_rows.RATES_FIND, asked, rate_rows.RatesFound)
    return RatesList(
        count=found.count,
        list=[shapes.shown_rate(rate) for rate in found.rates],
        paging=Paging(page=page, pageSize=page_size),
    )


async def of_provider(
    used: Used,
    provider: Provider,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    *,
    deprecated: IncludeDeprecated = False,
) -> RatesList:
    """Rates of one provider."""
    return await listed(used, provider, page=page, page_size=page_size, deprecated=deprecated)


async def create(
    used: Used,
    principal: Caller,
    provider: Provider,
    body: Annotated[shapes.NewRateBody, Depends(reads(shapes.NewRateBody))],
) -> shapes.ShownRate:
    """Set the rate of a model that has none for this kind of calls."""
    return await _one(used, principal.user, shapes.row(provider, body))


async def update(
    used: Used,
    principal: Caller,
    provider: Provider,
    rate_id: RateId,
    body: Annotated[shapes.RateBody, Depends(reads(shapes.RateBody))],
) -> shapes.ShownRate:
    """Change a rate; what the body does not name stays as it was."""
    rate = await _rate(used, provider, rate_id)
    shown = shapes.shown_rate(rate)
    for name, value, same in (("model", body.model, shown.model), ("type", body.type, shown.type)):
        if value not in {None, same}:
            raise HubError(
                ErrorCode.INVALID_REQUEST, f"A rate keeps its {name}; make another rate for {value}.", param=name
            )
    return await _one(used, principal.user, shapes.changed(rate, body))


async def remove(
    used: Used, principal: Caller, provider: Provider, rate_id: RateId, effective_at: EffectiveAt = None
) -> RateRemoved:
    """Take a rate away: its model costs what a broader rate says, or is not served. The history stays."""
    rate = await _rate(used, provider, rate_id)
    asked = rate_rows.RatesRemove(
        pattern=rate.pattern,
        type=rate.type,
        expected_version=rate.version,
        effective_at=effective_at,
        changed_by=principal.user,
    )
    removed = await used.peers.ask_catalog(rate_rows.RATES_REMOVE, asked, rate_rows.RateRemoved)
    return RateRemoved(
        message=f"The {removed.type} rate of {removed.pattern} is removed.",
        version=removed.version,
        effectiveAt=removed.effective_at,
        now=None if removed.now is None else removed.now.pattern,
    )


async def _rate(used: Used, provider: str, rate_id: str) -> rate_rows.FoundRate:
    rate = await used.peers.ask_catalog(rate_rows.RATE_GET, rate_rows.RateGet(rate_id=rate_id), rate_rows.FoundRate)
    if rate.pattern.partition("/")[0] != provider:
        raise HubError(ErrorCode.NOT_FOUND, f"This is no rate of {provider}.", param="rate_id")
    return rate


async def _one(used: Used, user: str, row: rate_rows.RateInput) -> shapes.ShownRate:
    added = await change(used, user, [row])
    if added.errors:
        (error,) = added.errors
        raise HubError(error.code, error.message, param=shapes.field(error.param))
    return shapes.shown_rate(added.rates[0])


async def change(
    used: Used, user: str, rows: list[rate_rows.RateInput], *, dry_run: bool = False
) -> rate_rows.RatesAdded:
    """Add versions in the name of a user, all or none."""
    asked = rate_rows.RatesChange(rates=tuple(rows), dry_run=dry_run, changed_by=user)
    return await used.peers.ask_catalog(rate_rows.RATES_CHANGE, asked, rate_rows.RatesAdded)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _conditions(q: str | None) -> list[rate_rows.Wanted]:
    """The conditions of a `q`."""
    found = []
    for word in (q or "").split():
        key, colon, value = word.partition(":")
        field = _KEYS.get(key)
        part = value.startswith(_PART)
        values = _several(value.removeprefix(_PART))
        if not colon or field is None or not values:
            raise HubError(
                ErrorCode.INVALID_REQUEST,
                f"`q` has conditions such as model:like.gpt or type:video,embedding; keys are {', '.join(_KEYS)}.",
                param="q",
            )
        found.append(rate_rows.Wanted(field=field, values=values, part=part))
    return found
