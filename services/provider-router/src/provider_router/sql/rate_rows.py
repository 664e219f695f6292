"""Rows of `catalog.rate`: one version of a pattern's rates each."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from contracts.rpc.catalog import About, PieceValue, TierValues, Values
from contracts.rpc.rate_changes import ChangeType
from contracts.usage import RateType
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
    type: RateType = RateType.CHAT
    about: About | None = None
    removed: bool = False
    """A version without rates, beside which the last ones stand."""

    @property
    def key(self) -> tuple[str, RateType]:
        """What it is the rate of."""
        return self.pattern, self.type


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
    """The rate's latest version, 0 = none, or none any more; None = whatever it is."""
    type: RateType = RateType.CHAT
    about: About | None = None
    removed: bool = False


def same(row: RateRow, changed_by: str, change_type: ChangeType) -> NewRate:
    """A version like the one before; what is to be different is replaced in it."""
    return NewRate(
        pattern=row.pattern,
        values=row.values,
        changed_by=changed_by,
        change_type=change_type,
        source=row.source,
        deprecated=row.deprecated,
        costs=row.costs,
        cost_source=row.cost_source,
        cost_at=row.cost_at,
        margin=row.margin,
        type=row.type,
        about=row.about,
    )


def columns(rate: NewRate, effective_at: datetime) -> tuple[object, ...]:
    """The values of a new row, from its pattern on."""
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
        rate.type,
        None if rate.about is None else rate.about.model_dump_json(),
        rate.removed,
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
        type=RateType(row["type"]),
        about=None if row["about"] is None else About.model_validate_json(row["about"]),
        removed=row["removed"],
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else plain(amount)
