"""Rows of `catalog.rate`: one version of a pattern's rates each."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from contracts.rpc.catalog import PieceValue, TierValues, Values
from contracts.rpc.rate_changes import ChangeType
from provider_router.catalog.costs import plain

if TYPE_CHECKING:
    import asyncpg

_TIERS: Final = TypeAdapter(tuple[TierValues, ...])
_PIECES: Final = TypeAdapter(tuple[PieceValue, ...])
_OPTIONAL: Final = ("cache_read", "cache_write", "cache_write_1h", "reasoning")


@dataclass(frozen=True, slots=True)
class RateRow:
    """A version of a pattern's rates: credits per unit, exactly as they were given."""

    rate_id: str
    version: int
    pattern: str
    values: Values
    source: str
    effective_at: datetime
    deprecated: bool = False
    change_type: ChangeType = "manual_update"
    changed_by: str = ""
    changed_at: datetime | None = None
    costs: Values | None = None
    """US dollars per unit; None = set by hand."""
    cost_source: str = ""
    cost_at: datetime | None = None
    margin: Decimal | None = None


@dataclass(frozen=True, slots=True)
class NewRate:
    """A version about to be added."""

    pattern: str
    values: Values
    changed_by: str
    change_type: ChangeType = "manual_update"
    source: str = "operator"
    effective_at: datetime | None = None
    """None = from the commit on."""
    deprecated: bool = False
    costs: Values | None = None
    cost_source: str = ""
    cost_at: datetime | None = None
    margin: Decimal | None = None
    expected_version: int | None = None
    """The pattern's latest version, 0 = none; None = whatever it is."""


def columns(rate: NewRate, effective_at: datetime) -> tuple[object, ...]:
    """The values of a new row, from its pattern to its margin."""
    values = rate.values
    return (
        rate.pattern,
        *(_number(price) for price in (values.input, values.output, values.cache_read, values.cache_write)),
        *(_number(price) for price in (values.cache_write_1h, values.reasoning, values.request)),
        _TIERS.dump_json(values.tiers).decode(),
        _PIECES.dump_json(values.pieces).decode(),
        rate.source,
        effective_at,
        rate.change_type,
        rate.changed_by,
        rate.deprecated,
        None if rate.costs is None else rate.costs.model_dump_json(),
        rate.cost_source,
        rate.cost_at,
        rate.margin,
    )


def from_record(row: "asyncpg.Record") -> RateRow:
    """A record with the columns of `catalog.rate`, `id` as `rate_id` and `revision` as `version`."""
    return RateRow(
        rate_id=row["rate_id"],
        version=row["version"],
        pattern=row["pattern"],
        values=Values(
            **{unit: _text(row[unit]) for unit in _OPTIONAL},
            input=plain(row["input"]),
            output=plain(row["output"]),
            request=plain(row["request"]),
            tiers=() if row["tiers"] == "[]" else _TIERS.validate_json(row["tiers"]),
            pieces=() if row["pieces"] == "[]" else _PIECES.validate_json(row["pieces"]),
        ),
        source=row["source"],
        effective_at=row["effective_at"],
        deprecated=row["deprecated"],
        change_type=row["change_type"],
        changed_by=row["changed_by"],
        changed_at=row["changed_at"],
        costs=None if row["costs"] is None else Values.model_validate_json(row["costs"]),
        cost_source=row["cost_source"],
        cost_at=row["cost_at"],
        margin=row["margin"],
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else plain(amount)
