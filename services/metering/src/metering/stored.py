"""A call's usage and rates as its row in the books holds them: written when it is settled, read to price it again."""

from typing import Any, Final, Protocol

import msgspec

from contracts.usage import Piece, Rates, Usage, UsageSource

COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
"""Columns of `metering.model_call`; what else a call used stands in its column `units`."""


class Row(Protocol):
    """A record of asyncpg, or a dict."""

    def __getitem__(self, column: str, /) -> Any:
        """The value of a column."""


class _Units(msgspec.Struct, frozen=True, omit_defaults=True):
    """The column `units`."""

    cache_write_1h_tokens: int = 0
    pieces: tuple[Piece, ...] = ()


_ENCODE: Final = msgspec.json.Encoder().encode
_UNITS: Final = msgspec.json.Decoder(_Units)
_RATES: Final = msgspec.json.Decoder(Rates)
_NO_UNITS: Final = _Units()


def units_text(usage: Usage) -> str | None:
    """The column `units` of a usage; None in the common case of a call that used nothing but plain tokens."""
    if not usage.cache_write_1h_tokens and not usage.pieces:
        return None
    return _ENCODE(_Units(usage.cache_write_1h_tokens, usage.pieces)).decode()


def usage_of(row: Row) -> Usage:
    """Usage of a row of `metering.model_call`; nothing for a call that never got as far."""
    units = _NO_UNITS if row["units"] is None else _UNITS.decode(row["units"])
    return Usage(
        **{name: row[name] or 0 for name in COUNTS},
        source=UsageSource(row["usage_source"] or "reported"),
        cache_write_1h_tokens=units.cache_write_1h_tokens,
        pieces=units.pieces,
    )


def rates_of(row: Row) -> Rates | None:
    """The frozen rates that priced a row of `metering.model_call`; None = nothing was to be priced."""
    return None if row["rates"] is None else _RATES.decode(row["rates"])
