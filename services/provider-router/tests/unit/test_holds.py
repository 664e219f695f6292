"""What a running answer uses of its hold, and what more must be held."""

from decimal import Decimal

import pytest

from contracts.money import ZERO
from contracts.usage import Candidate, Rates, Usage
from provider_router.holds import HoldMeter

CHEAP = Candidate("a", "m", Rates(input="0.1", output="0.2"))
DEAR = Candidate("b", "m", Rates(input="0.1", output="0.2", cache_write="0.3", reasoning="0.5"))
EVENT = b"data: " + b"x" * 200 + b"\n\n"


def _meter(*candidates: Candidate, output: int = 100) -> HoldMeter:
    return HoldMeter(50, output, output, candidates or (CHEAP, DEAR))


def test_nothing_is_asked_for_while_the_hold_suffices() -> None:
    meter = _meter()
    for _ in range(69):
        meter.relayed(EVENT)
    assert meter.wanted() == ZERO


def test_a_slice_at_the_dearest_rate_is_asked_for_before_the_hold_is_used_up() -> None:
    meter = _meter()
    for _ in range(70):
        meter.relayed(EVENT)
    assert meter.wanted() == 100 * Decimal("0.5")
    meter.asking = True
    assert meter.wanted() == ZERO
    meter.asking = False
    meter.granted()
    assert meter.output_tokens == 200
    assert meter.wanted() == ZERO


def test_text_beyond_an_events_frame_counts_by_its_bytes() -> None:
    meter = _meter()
    meter.relayed(EVENT)
    meter.relayed(EVENT.replace(b"\n\n", b"y" * 210 + b"\n\n"))
    assert meter.wanted() > ZERO


def test_events_that_arrive_together_count_one_by_one() -> None:
    meter = _meter()
    meter.relayed(EVENT * 70)
    assert meter.events == 70
    assert meter.wanted() > ZERO


def test_free_answers_never_ask() -> None:
    meter = _meter(Candidate("a", "m", Rates()))
    meter.relayed(EVENT * 1000)
    assert meter.wanted() == ZERO


@pytest.mark.parametrize(
    ("usage", "missing"),
    [
        (Usage(input_tokens=50, output_tokens=100), "0"),
        (Usage(input_tokens=50, output_tokens=101), "0.5"),
        (Usage(output_tokens=60, reasoning_tokens=60), "10"),
        (Usage(input_tokens=30, cache_read_tokens=20, cache_write_tokens=10), "3"),
    ],
)
def test_what_the_hold_lacks_at_the_end_is_bounded_by_the_dearest_rates(usage: Usage, missing: str) -> None:
    assert _meter().missing(usage) == Decimal(missing)
