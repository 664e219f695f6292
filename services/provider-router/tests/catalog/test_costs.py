"""Rates from unit costs, margins, drifts."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.rpc.catalog import PieceValue, TierValues, Values
from provider_router.catalog.costs import Policy, at_length, compared, drift, least_margin, lifted

_PRICE = st.decimals(0, 1, places=12).map(lambda price: format(price, "f"))
_SOME = st.none() | _PRICE
_TIERS = st.lists(
    st.builds(
        TierValues, above=st.integers(1, 10**6), input=_PRICE, output=_PRICE, cache_read=_SOME, cache_write=_SOME
    ),
    max_size=2,
    unique_by=lambda tier: tier.above,
).map(lambda found: tuple(sorted(found, key=lambda tier: tier.above)))
_PIECES = st.lists(
    st.builds(
        PieceValue, unit=st.sampled_from(("image", "character")), rate=_PRICE, size=st.just(""), quality=st.just("")
    ),
    max_size=2,
    unique_by=lambda piece: piece.unit,
).map(tuple)
VALUES = st.builds(
    Values,
    input=_PRICE,
    output=_PRICE,
    cache_read=_SOME,
    cache_write=_SOME,
    cache_write_1h=_SOME,
    reasoning=_SOME,
    request=_PRICE,
    tiers=_TIERS,
    pieces=_PIECES,
)
POLICIES = st.builds(
    Policy, st.decimals(0, 500, places=3), st.decimals("0.0001", 1000, places=4).filter(lambda price: price > 0)
)


@pytest.mark.parity(110)
@pytest.mark.parametrize(
    ("cost", "margin", "price", "rate"),
    [
        ("0.0000025", "2", "1", "0.0000025500"),
        ("0.0000025", "0", "0.0000025", "1.0000000000"),
        ("0.00000015", "2.5", "1", "0.0000001538"),  # 0.00000015375
        ("0.00000000005", "0", "2", "0.0000000001"),  # never rounded away
        ("0", "50", "1", "0.0000000000"),
    ],
)
def test_a_rate_is_cost_and_margin_over_the_price_of_a_credit(cost: str, margin: str, price: str, rate: str) -> None:
    policy = Policy(Decimal(margin), Decimal(price))
    assert policy.rates(Values(input=cost, output=cost)).input == rate


def test_without_a_margin_and_at_a_dollar_a_credit_rates_are_the_costs_to_the_last_digit() -> None:
    costs = Values(input="0.0000000000123", output="1")
    assert Policy(Decimal(0), Decimal(1)).rates(costs) is costs


@given(VALUES, POLICIES)
def test_every_unit_is_marked_up_alike(costs: Values, policy: Policy) -> None:
    rates = policy.rates(costs)
    for rate, cost in compared(rates, costs):
        exact = cost * (1 + policy.margin_percent / 100) / policy.credit_price
        assert abs(rate - exact) <= Decimal("1E-10")
        assert (rate == 0) == (cost == 0)


@given(VALUES, VALUES)
def test_drift_is_a_share_and_nothing_between_equals(first: Values, second: Values) -> None:
    assert 0 <= drift(first, second) == drift(second, first) <= 1
    assert drift(first, first) == 0


def test_drift_is_the_greatest_of_all_units_and_lengths() -> None:
    flat = Values(input="1", output="2")
    assert drift(flat, Values(input="0.9", output="2")) == Decimal("0.1")
    assert drift(flat, Values(input="1", output="2", cache_read="1", reasoning="2")) == 0
    tiered = Values(input="1", output="2", tiers=(TierValues(above=10, input="1", output="4"),))
    assert drift(flat, tiered) == Decimal("0.5")


@given(VALUES, VALUES)
def test_lifted_rates_lie_below_neither_and_no_higher_than_needed(rates: Values, floor: Values) -> None:
    raised = lifted(rates, floor)
    borders = {0, *(tier.above for each in (rates, floor) for tier in each.tiers)}
    for border in borders:
        for unit, price in at_length(raised, border).items():
            assert price == max(at_length(rates, border)[unit], at_length(floor, border)[unit])
    margin = least_margin(raised, floor, Decimal(1))
    assert margin is None or margin >= 0


def test_the_least_margin_sees_a_cache_rate_that_is_missing_and_a_tier_that_is_not_charged() -> None:
    costs = Values(
        input="1", output="2", cache_write="1.25", tiers=(TierValues(above=10, input="2", output="2", cache_write="2"),)
    )
    assert least_margin(Values(input="1.1", output="2.2"), Values(input="1", output="2"), Decimal(1)) == 10
    assert least_margin(Values(input="2.5", output="2"), costs, Decimal(1)) == 0
    assert least_margin(Values(input="1", output="2", cache_write="2"), costs, Decimal(1)) == -50
    assert (
        least_margin(Values(input="1", output="2"), Values(input="1", output="1", cache_write="1.25"), Decimal(1))
        == -20
    )
    assert least_margin(Values(input="1", output="1"), Values(input="0", output="0"), Decimal(1)) is None
    assert least_margin(Values(input="2", output="2"), Values(input="1", output="1"), Decimal("0.25")) == -50
