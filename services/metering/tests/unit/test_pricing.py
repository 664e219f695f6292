from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.money import LIMIT, PLACES, to_text
from contracts.usage import TOKENS_MAX, Rates, Usage, UsageSource
from metering.pricing import PricingError, bounded, cost

counts = st.integers(min_value=0, max_value=TOKENS_MAX)
rates = st.decimals(min_value=0, max_value=10**6, places=12).map(lambda rate: format(rate, "f"))
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    cache_read_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
)
all_rates = st.builds(
    Rates,
    input=rates,
    output=rates,
    cache_read=st.none() | rates,
    cache_write=st.none() | rates,
    reasoning=st.none() | rates,
    request=rates,
)


@given(usages, all_rates)
def test_cost_is_the_exact_sum_rounded_once(usage: Usage, frozen: Rates) -> None:
    exact = (
        Decimal(frozen.request)
        + usage.input_tokens * Decimal(frozen.input)
        + usage.output_tokens * Decimal(frozen.output)
        + usage.cache_read_tokens * Decimal(frozen.input if frozen.cache_read is None else frozen.cache_read)
        + usage.cache_write_tokens * Decimal(frozen.input if frozen.cache_write is None else frozen.cache_write)
        + usage.reasoning_tokens * Decimal(frozen.output if frozen.reasoning is None else frozen.reasoning)
    )
    assert abs(cost(usage, frozen) - exact) <= PLACES / 2


@given(usages, all_rates, st.integers(min_value=0, max_value=1000))
def test_more_tokens_never_cost_less(usage: Usage, frozen: Rates, more: int) -> None:
    grown = Usage(
        usage.input_tokens + more,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    assert cost(grown, frozen) >= cost(usage, frozen)


@given(st.lists(st.integers(min_value=-(10**30), max_value=10**30), min_size=5, max_size=5), all_rates)
def test_absurd_counts_are_bounded_and_marked(raw: list[int], frozen: Rates) -> None:
    usage = bounded(Usage(*raw))
    is_credible = all(0 <= count <= TOKENS_MAX for count in raw)
    assert usage.source == (UsageSource.REPORTED if is_credible else UsageSource.ESTIMATED)
    assert 0 <= cost(usage, frozen) < LIMIT


def test_half_a_unit_is_rounded_up() -> None:
    assert to_text(cost(Usage(input_tokens=1), Rates(input="0.00000000005"))) == "0.0000000001"
    assert to_text(cost(Usage(input_tokens=1), Rates(input="0.00000000004"))) == "0.0000000000"


def test_a_cost_beyond_the_books_is_bounded() -> None:
    assert cost(Usage(input_tokens=TOKENS_MAX), Rates(input="999999999999")) == LIMIT - PLACES


@pytest.mark.parametrize("rate", ["NaN", "-1", "Infinity", "1e18", "", "one", "-0.0000000001", "1" * 41])
def test_a_rate_that_is_no_price_is_refused(rate: str) -> None:
    with pytest.raises(PricingError):
        cost(Usage(input_tokens=1), Rates(input=rate))
