"""A provider's bill as CSV, against what the books say that it served, by day and model.

Columns are found by their headers, whatever the order: day, model, requests, input, cached and output tokens. Counts
that a bill does not have are not compared; a bill without day, model and one of the counts is none.
"""

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from contracts.rpc import metering
from contracts.rpc import reconcile as r
from hub_local.commands import show
from hub_local.commands.session import UsageError, connected
from runtime import rpc

_ASK_S: Final = 120.0
_DAYS_MAX: Final = 400
_DAY: Final = "day"
_MODEL: Final = "model"
COUNTS: Final = ("requests", "input_tokens", "cached_tokens", "output_tokens")
HEADERS: Final[dict[str, tuple[str, ...]]] = {
    _DAY: ("day", "date", "usage_date", "date_utc", "usage_date_utc", "timestamp", "start_time_iso", "start_time"),
    _MODEL: ("model", "model_version", "snapshot", "snapshot_id", "model_name", "model_id"),
    "requests": ("requests", "n_requests", "num_model_requests", "request_count"),
    "input_tokens": ("input_tokens", "prompt_tokens", "n_context_tokens_total", "context_tokens"),
    "cached_tokens": (
        "cached_tokens", "input_cached_tokens", "n_cached_context_tokens_total", "cached_input_tokens",
        "usage_input_tokens_cache_read", "cache_read_input_tokens",
    ),
    "output_tokens": ("output_tokens", "completion_tokens", "n_generated_tokens_total", "usage_output_tokens"),
}  # fmt: skip
"""Names of a column, the better ones first."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a provider says: counts by day and model. Counts that it does not name are absent."""

    counts: tuple[str, ...]
    rows: dict[tuple[date, str], dict[str, int]] = field(default_factory=dict)


def read(path: Path, failure: int) -> Bill:
    """Read a file; a file that is no bill ends the command with exit code `failure` and a line that says why."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return parsed(lines)
    except (OSError, UnicodeDecodeError, UsageError, csv.Error) as error:
        sys.stderr.write(f"hub: {path.name}: {error}\n")
        raise SystemExit(failure) from None


def parsed(lines: Iterable[str]) -> Bill:
    """The bill in the lines of a CSV file.

    Raises:
        UsageError: a column is missing or a value is none; names the line.
    """
    reader = csv.DictReader(lines)
    columns = _columns(reader.fieldnames or ())
    counts = tuple(name for name in COUNTS if name in columns)
    if _DAY not in columns or _MODEL not in columns or not counts:
        known = ", ".join(reader.fieldnames or ()) or "nothing"
        raise UsageError(f"no columns for day, model and at least one of {', '.join(COUNTS)} among: {known[:300]}")
    bill = Bill(counts)
    for row in reader:
        try:
            key = (_as_day(row[columns[_DAY]] or ""), (row[columns[_MODEL]] or "").strip())
            values = {name: _as_count(row[columns[name]] or "") for name in counts}
        except ValueError as error:
            raise UsageError(f"line {reader.line_num}: {error}") from error
        sums = bill.rows.setdefault(key, dict.fromkeys(counts, 0))
        for name, value in values.items():
            sums[name] += value
    return bill


async def compare(bill: Bill, provider: str, tolerance: str) -> bool:
    """Print both sides of every day and model; whether any of them differs by more than the tolerance.

    Raises:
        UsageError: the bill is empty or spans more than 400 days, or the tolerance is none.
    """
    share = _as_share(tolerance)
    days = sorted({day for day, _ in bill.rows})
    if not days:
        raise UsageError("the bill has no rows")
    if len(days) > _DAYS_MAX:
        raise UsageError(f"the bill spans {len(days)} days; at most {_DAYS_MAX} are compared at once")
    served = {}
    async with connected() as bus:
        for day in days:
            wanted = r.ProviderSums(provider=provider, day=day.isoformat())
            reply = await rpc.ask(bus, metering.SERVICE, r.PROVIDER_SUMS, wanted, r.ProviderSumsReply, timeout_s=_ASK_S)
            served.update({(day, each.model): each.model_dump(include=set(COUNTS)) for each in reply.sums})
    rows = compared(bill, served, share)
    show.table(
        ("day", "model", "what", "bill", "books", "difference", ""),
        [
            (day, model, what, billed, booked, f"{billed - booked:+d}", "differs" if differs else "")
            for day, model, what, billed, booked, differs in rows
        ],
    )
    count = sum(differs for *_, differs in rows)
    print(f"\n{provider}: {len(days)} days, {count} differences above {tolerance}")
    return count > 0


Row = tuple[str, str, str, int, int, bool]


def compared(bill: Bill, served: dict[tuple[date, str], dict[str, int]], share: Decimal) -> list[Row]:
    """Day, model, count, bill, books, and whether they differ by more than a share of the larger one."""
    rows: list[Row] = []
    for day, model in sorted(bill.rows.keys() | served.keys()):
        ours, theirs = served.get((day, model), {}), bill.rows.get((day, model), {})
        for name in bill.counts:
            billed, booked = theirs.get(name, 0), ours.get(name, 0)
            differs = abs(billed - booked) > share * max(billed, booked)
            rows.append((day.isoformat(), model, name, billed, booked, differs))
    return rows


def _columns(headers: Iterable[str]) -> dict[str, str]:
    """Our names → the file's headers."""
    by_name = {_plain(header): header for header in reversed(list(headers))}
    found = {}
    for ours, names in HEADERS.items():
        for name in names:
            if name in by_name:
                found[ours] = by_name[name]
                break
    return found


def _plain(header: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in header.lower()).split()
    return "_".join(words)


def _as_day(words: str) -> date:
    words = words.strip()
    if words.isascii() and words.isdigit():
        try:
            return datetime.fromtimestamp(int(words), UTC).date()
        except (OverflowError, OSError) as error:
            raise ValueError(f"{words[:40]!r} is no time") from error
    try:
        at = datetime.fromisoformat(words)
    except ValueError as error:
        raise ValueError(f"{words[:40]!r} is no day") from error
    return (at.astimezone(UTC) if at.tzinfo is not None else at).date()


def _as_count(words: str) -> int:
    words = words.strip().replace(",", "").replace(" ", "")
    try:
        count = Decimal(words or "0")
    except InvalidOperation as error:
        raise ValueError(f"{words[:40]!r} is no count") from error
    if not count.is_finite() or count < 0 or count >= 10**15 or count != count.to_integral_value():
        raise ValueError(f"{words[:40]!r} is no count")
    return int(count)


def _as_share(words: str) -> Decimal:
    number = words.strip()
    try:
        share = Decimal(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except InvalidOperation as error:
        raise UsageError(f"{words[:40]!r} is no tolerance: 1% or 0.01") from error
    if not share.is_finite() or not 0 <= share < 1:
        raise UsageError("a tolerance lies between 0 and 100 %")
    return share
