"""Tables and records on a terminal; plain, tab-separated text when it is piped on."""

import sys
from collections.abc import Mapping, Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under heads."""
    if not sys.stdout.isatty():
        for row in (heads, *rows):
            print("\t".join(str(cell) for cell in row))
        return
    from rich.console import Console  # noqa: PLC0415 - only for people
    from rich.table import Table  # noqa: PLC0415

    drawn = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    Console(highlight=False).print(drawn)


def record(fields: Mapping[str, object]) -> None:
    """One thing, a line per field."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name:<{width}}  {value}")
