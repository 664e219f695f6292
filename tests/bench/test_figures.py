import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import GapMeter, percentile, spread, stall_s

durations = st.lists(st.floats(min_value=0, max_value=100), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 10), (20, 10), (21, 20), (50, 30), (80, 40), (81, 50), (99, 50), (100, 50)]
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([10, 20, 30, 40, 50], percent) == expected


@given(values=durations, percent=st.floats(min_value=0.1, max_value=100))
def test_a_percentile_was_measured_and_has_its_share_of_values_at_or_below(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= percent / 100 * len(ordered) - 1e-9
    assert sum(value < found for value in ordered) < percent / 100 * len(ordered) + 1e-9


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_outside_a_hundred(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, percent)


def test_a_spread_is_in_milliseconds_whatever_the_order_of_seconds() -> None:
    found = spread([n / 1000 for n in (*range(100, 50, -1), *range(1, 51))])
    assert (found.count, found.p50, found.p90, found.p99, found.max) == (100, 50, 90, 99, 100)
    assert found.mean == pytest.approx(50.5)


def test_a_spread_of_nothing_counts_nothing() -> None:
    assert spread([]).count == 0


def test_a_stall_is_what_a_gap_exceeds_the_pace_by() -> None:
    assert stall_s(0.050, 50) == pytest.approx(0.030)
    assert stall_s(0.019, 50) == 0


def test_the_longest_gap_is_found_with_and_without_the_last() -> None:
    gaps = GapMeter()
    for at in (10.0, 10.02, 10.05, 10.06, 10.20):
        gaps.arrived(at)
    assert gaps.longest == pytest.approx(0.14)
    assert gaps.longest_before_last == pytest.approx(0.03)


def test_one_arrival_has_no_gap() -> None:
    gaps = GapMeter()
    gaps.arrived(123.0)
    assert (gaps.longest, gaps.longest_before_last) == (0, 0)


@given(steps=st.lists(st.floats(min_value=0.001, max_value=5), min_size=1, max_size=30))
def test_the_longest_gap_is_the_largest_step(steps: list[float]) -> None:
    gaps = GapMeter()
    at = 0.0
    gaps.arrived(at)
    for step in steps:
        at += step
        gaps.arrived(at)
    assert gaps.longest == pytest.approx(max(steps))
    assert gaps.longest_before_last == pytest.approx(max(steps[:-1], default=0))
