"""`/api/ai-providers/…`: many rates at once, in the original's shapes; a change is made whole or not at all."""

from typing import Annotated, Any, Final

from fastapi import Depends
from pydantic import BaseModel, Field, ValidationError

from contracts.errors import ErrorCode, HubError
from contracts.rpc import rate_changes, rate_rows
from contracts.rpc.rate_changes import COSTS_MAX, VERSION_MAX, CreditPrice, Percent, RateChange, RatesChanged
from contracts.rpc.rate_rows import ROWS_MAX
from gateway.api import rate_shapes as shapes
from gateway.api.bodies import reads
from gateway.api.errors import RowProblem, RowsRefusedError
from gateway.api.model_rates import change
from gateway.api.rate_shapes import OR_NUMBER, Caching, Camel, Costs, Model, NewRateBody, ProviderId
from gateway.api.services import Caller, Used

_LONG_S: Final = 45.0


class EverywhereBody(NewRateBody):
    """The same rate for several providers, all or none."""

    providers: tuple[ProviderId, ...] = Field(min_length=1, max_length=ROWS_MAX)


class BatchRow(NewRateBody):
    """A rate to add, or with the version that it replaces one to change; prices that are absent fall back."""

    provider_id: ProviderId
    expected_version: int = Field(0, ge=0, le=VERSION_MAX)


class BatchBody(Camel):
    """Rates to add and to change, all or none; rows are read one by one, so that all wrong ones can be told."""

    rates: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=ROWS_MAX)
    dry_run: bool = False


class BatchDocument(BatchBody):
    """Rates to add and to change, all or none."""

    rates: tuple[BatchRow, ...] = Field(min_length=1, max_length=ROWS_MAX)  # type: ignore[assignment]


class CostEntry(Camel):
    """What a vendor takes, in US dollars per token."""

    provider: ProviderId | None = None
    provider_id: ProviderId | None = None
    model: Model
    unit_costs: Costs
    caching: Caching | None = None


class BulkBody(Camel):
    """A margin for all rates that have unit costs; or, with any of the other fields, costs to take over."""

    profit_margin: Annotated[Percent, OR_NUMBER] | None = None
    credit_price: Annotated[CreditPrice, OR_NUMBER] | None = None
    updates: tuple[CostEntry, ...] | None = Field(None, max_length=COSTS_MAX)
    entries: tuple[CostEntry, ...] | None = Field(None, max_length=COSTS_MAX, description="The same as `updates`.")
    providers: tuple[ProviderId, ...] = Field((), max_length=100)
    apply_rates: bool | None = None
    deprecate_unmatched: bool | None = None
    dry_run: bool = False


class ChangedRate(Camel):
    """One rate that a bulk change moves."""

    provider_id: str
    model: str
    previous: dict[str, str] | None
    current: dict[str, str]
    source: str


class BulkSummary(Camel):
    """How many."""

    total: int
    created: int
    updated: int
    unchanged: int
    deprecated: int
    unmatched: int


class BulkChanged(Camel):
    """What a bulk change did, or would do."""

    message: str
    dry_run: bool
    created: list[ChangedRate]
    updated: list[ChangedRate]
    deprecated: list[ChangedRate]
    unchanged: int
    unmatched: list[str]
    errors: list[str]
    summary: BulkSummary


class Summary(BaseModel):
    """How many."""

    total: int


class RatesWritten(BaseModel):
    """Rates that were added or changed together."""

    message: str
    data: list[shapes.ShownRate]
    summary: Summary


async def create_everywhere(
    used: Used, principal: Caller, body: Annotated[EverywhereBody, Depends(reads(EverywhereBody))]
) -> RatesWritten:
    """Set the rate of a model at several providers, at all or at none."""
    rows = {index: shapes.row(provider, body) for index, provider in enumerate(body.providers)}
    return await _written(used, principal.user, rows, [])


async def batch(used: Used, principal: Caller, body: Annotated[BatchBody, Depends(reads(BatchBody))]) -> RatesWritten:
    """Add and change rates, all or none; a refusal tells what is wrong with each row."""
    rows: dict[int, rate_rows.RateInput] = {}
    wrong: list[RowProblem] = []
    for index, raw in enumerate(body.rates):
        try:
            row = BatchRow.model_validate(raw)
            rows[index] = shapes.row(row.provider_id, row, row.expected_version)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            param = ".".join(str(part) for part in first["loc"])
            wrong.append(RowProblem(index, ErrorCode.INVALID_REQUEST, f"`{param}`: {first['msg']}.", param))
    return await _written(used, principal.user, rows, wrong, dry_run=body.dry_run)


async def bulk(used: Used, principal: Caller, body: Annotated[BulkBody, Depends(reads(BulkBody))]) -> BulkChanged:
    """Compute all rates that have unit costs with another margin, or take unit costs over."""
    given = body.updates if body.updates is not None else body.entries
    is_sync = (
        given is not None or body.providers or body.apply_rates is not None or body.deprecate_unmatched is not None
    )
    question: BaseModel
    if is_sync:
        method = rate_changes.RATES_SYNC
        question = rate_changes.RatesSync(
            providers=body.providers,
            costs=None if given is None else tuple(_cost(index, entry) for index, entry in enumerate(given)),
            margin_percent=body.profit_margin,
            credit_price=body.credit_price,
            apply_rates=body.apply_rates is not False,
            deprecate_unmatched=bool(body.deprecate_unmatched),
            dry_run=body.dry_run,
            changed_by=principal.user,
        )
    elif body.profit_margin is not None:
        method = rate_changes.RATES_MARGIN
        question = rate_changes.RatesMargin(
            margin_percent=body.profit_margin,
            credit_price=body.credit_price,
            dry_run=body.dry_run,
            changed_by=principal.user,
        )
    else:
        raise HubError(ErrorCode.INVALID_REQUEST, "Name a `profitMargin`, or costs to take over.", param="profitMargin")
    report = await used.peers.ask_catalog(method, question, rate_changes.RatesChanged, _LONG_S)
    return _bulk_changed(report)


async def _written(
    used: Used,
    user: str,
    rows: dict[int, rate_rows.RateInput],
    wrong: list[RowProblem],
    *,
    dry_run: bool = False,
) -> RatesWritten:
    """Change all of them, or tell all that is wrong: what was seen here, and what provider-router says of the rest."""
    added = rate_rows.RatesAdded()
    if rows:
        added = await change(used, user, list(rows.values()), dry_run=dry_run or bool(wrong))
    places = list(rows)
    wrong += [
        RowProblem(places[each.index], each.code, each.message, shapes.field(each.param)) for each in added.errors
    ]
    if wrong:
        raise RowsRefusedError(sorted(wrong, key=lambda each: each.index))
    done = "are right; nothing was changed" if dry_run else "are set"
    return RatesWritten(
        message=f"{len(rows)} rates {done}.",
        data=[shapes.shown_rate(rate) for rate in added.rates],
        summary=Summary(total=len(rows)),
    )


def _bulk_changed(report: RatesChanged) -> BulkChanged:
    """What a bulk change did, in the original's words."""
    by_kind: dict[str, list[ChangedRate]] = {"created": [], "updated": [], "deprecated": []}
    for each in report.changes:
        by_kind[each.change].append(_changed_rate(each))
    total = len(report.changes) + report.unchanged
    done = "would be changed" if report.dry_run else "changed"
    return BulkChanged(
        message=f"{len(report.changes)} of {total} rates {done}.",
        dry_run=report.dry_run,
        unchanged=report.unchanged,
        unmatched=list(report.unmatched),
        errors=list(report.errors),
        summary=BulkSummary(
            total=total,
            created=report.created,
            updated=report.updated,
            unchanged=report.unchanged,
            deprecated=report.deprecated,
            unmatched=len(report.unmatched),
        ),
        **by_kind,
    )


def _changed_rate(change: RateChange) -> ChangedRate:
    provider, _, model = change.pattern.partition("/")
    old = change.old
    return ChangedRate(
        provider_id=provider,
        model=model,
        previous=None if old is None else {"inputRate": old.input, "outputRate": old.output},
        current={"inputRate": change.new.input, "outputRate": change.new.output},
        source=change.cost_source,
    )


def _cost(index: int, entry: CostEntry) -> rate_changes.GivenCost:
    provider = entry.provider_id or entry.provider
    if provider is None:
        raise HubError(ErrorCode.INVALID_REQUEST, f"Row {index} names no provider.", param=f"updates.{index}.provider")
    caching = entry.caching or Caching()
    return rate_changes.GivenCost(
        pattern=f"{provider}/{entry.model}",
        input=entry.unit_costs.input,
        output=entry.unit_costs.output,
        cache_read=caching.read_rate,
        cache_write=caching.write_rate,
    )
