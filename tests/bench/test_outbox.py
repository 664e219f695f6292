"""A short round of the outbox bench, for every run of the tests; and what it says when the sides are not equal."""

from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from bench.outbox import KIT, VALUE, measured, problems


@pytest.mark.timeout(120)
async def test_everything_that_waits_is_reported_once_by_two_meterings(template_folder: Path | None) -> None:
    drained = await measured(200, 10, 4, 2, template_folder)
    assert drained.problems == []
    assert drained.events == 200
    assert drained.per_s > 0
    assert {"metering", "metering-2", "postgres", KIT} <= drained.cpu_ms.keys()


class Journal:
    """Payment Kit that has applied these."""

    def __init__(self, *applied: tuple[str, Decimal]) -> None:
        self.applied = applied

    async def control(self, what: str) -> list[dict[str, Any]]:
        assert what == "journal"
        wanted = [{"identifier": one, "payload": {"value": str(value)}} for one, value in self.applied]
        return [{"kind": "meter_event", "wanted": event} for event in wanted] + [{"kind": "grant"}]


@pytest.mark.parametrize(
    ("applied", "sent", "said"),
    [
        ([("a", VALUE), ("b", VALUE)], 2, []),
        ([("a", VALUE)], 1, ["2 rows, 1 sent, 0 parked", "1 events are missing, 0 extra", "Payment Kit has"]),
        ([("a", VALUE), ("b", VALUE), ("b", VALUE)], 2, ["1 events were applied more than once", "Payment Kit has"]),
        ([("a", VALUE), ("c", VALUE)], 2, ["1 events are missing, 1 extra"]),
        ([("a", VALUE), ("b", VALUE + 1)], 2, ["Payment Kit has"]),
    ],
)
async def test_sides_that_are_not_equal_are_told(
    applied: list[tuple[str, Decimal]], sent: int, said: list[str]
) -> None:
    found = await problems(cast("Any", Journal(*applied)), {"a", "b"}, {"sent": sent, "parked": 0})
    assert len(found) == len(said)
    assert all(words.startswith(begins) for words, begins in zip(found, said, strict=True)), found
