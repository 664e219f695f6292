"""What a running answer uses of its hold, and what more must be held."""

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.money import ZERO
from contracts.usage import Candidate, Rates, Tier, Usage
from provider_router.holds import HoldMeter

CHEAP = Candidate("a", "m", Rates(input="0.1", output="0.2"))
DEAR = Candidate("b", "m", Rates(input="0.1", output="0.2", cache_write="0.3", reasoning="0.5"))
EVENT = b"data: " + b"x" * 200 + b"\n\n"


def _meter(*candidates: Candidate, output: int = 100) -> HoldMeter:
    return HoldMeter(50, output, output, candidates or (CHEAP, DEAR))


def _relay(meter: HoldMeter, *blocks: bytes) -> Decimal:
    """What is asked for at the last block, nothing having been asked before."""
    *earlier, last = blocks
    assert all(meter.relayed(block) == ZERO for block in earlier)
    return meter.relayed(last)


def test_nothing_is_asked_for_while_the_hold_suffices() -> None:
    assert _relay(_meter(), *[EVENT] * 69) == ZERO


def test_a_slice_at_the_dearest_rate_is_asked_for_before_the_hold_is_used_up() -> None:
    meter = _meter()
    assert _relay(meter, *[EVENT] * 70) == 100 * Decimal("0.5")
    meter.asking = True
    assert meter.relayed(EVENT) == ZERO
    meter.asking = False
    meter.granted()
    assert meter.output_tokens == 200
    assert _relay(meter, *[EVENT] * 68) == ZERO
    assert meter.relayed(EVENT) > ZERO


def test_text_beyond_an_events_frame_counts_by_its_bytes() -> None:
    assert _relay(_meter(), EVENT, EVENT.replace(b"\n\n", b"y" * 210 + b"\n\n")) > ZERO


def test_events_that_arrive_together_count_one_by_one() -> None:
    meter = _meter()
    assert meter.relayed(EVENT * 70) > ZERO
    assert meter.events == 70


def test_free_answers_never_ask() -> None:
    assert _meter(Candidate("a", "m", Rates())).relayed(EVENT * 1000) == ZERO


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 3000))
@example([11, 1, 24], 20)  # a rest of text that is no whole token
def test_looking_away_never_misses_the_moment(texts: list[int], output: int) -> None:
    eager, lazy = _meter(output=output), _meter(output=output)
    for text in texts:
        block = b"data: " + b"x" * (20 + text) + b"\n\n"
        eager.left = 0
        assert (eager.relayed(block) > ZERO) == (lazy.relayed(block) > ZERO)


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


TIERED = Candidate("t", "m", Rates("1", "2", tiers=(Tier(100, "3", "7"), Tier(1000, "10", "20"))))


def test_a_slice_is_asked_for_at_the_price_of_the_tier_that_the_prompt_may_have_reached() -> None:
    short, long = (HoldMeter(tokens, 10, 10, (TIERED,)) for tokens in (100, 101))
    assert _relay(short, *[EVENT] * 7) == 20
    assert _relay(long, *[EVENT] * 7) == 70


def test_a_prompt_that_reached_a_dearer_tier_than_was_held_for_owes_the_difference_for_all() -> None:
    meter = HoldMeter(50, 10, 10, (TIERED,))
    assert meter.missing(Usage(50, 10)) == ZERO
    assert meter.missing(Usage(input_tokens=60)) == 10
    # 110 tokens at 3 instead of 50 at 1, and the ten of output that are held at 7 instead of 2
    assert meter.missing(Usage(input_tokens=10, cache_write_1h_tokens=100)) == 110 * 3 - 50 + 10 * 5


@given(st.integers(0, 2000), st.integers(0, 3000), st.integers(0, 100), st.integers(0, 200))
def test_hold_and_what_was_missing_together_cover_the_bill(held: int, prompt: int, slice_: int, output: int) -> None:
    def rates(length: int) -> tuple[int, int]:
        return (10, 20) if length > 1000 else (3, 7) if length > 100 else (1, 2)

    meter = HoldMeter(held, slice_, 1, (TIERED,))
    at_hold, at_end = rates(held), rates(prompt)
    hold = held * at_hold[0] + slice_ * at_hold[1]
    assert hold + meter.missing(Usage(prompt, output)) >= prompt * at_end[0] + output * at_end[1]
