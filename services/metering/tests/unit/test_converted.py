"""Another unit: no account gains or loses more than one rounding, however many grants it has."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.rpc.conversion import conversion_id
from metering.ledger.converted import converted, exact_text, rounding

RESTS = st.lists(st.integers(0, 10**27).map(lambda units: Decimal(units).scaleb(-10)), max_size=30)
PRICES = st.one_of(
    st.sampled_from(["0.0000025", "400000", "1", "0.000000001", "999999.999999999"]).map(Decimal),
    st.decimals("0.000000001", "999999", allow_nan=False, allow_infinity=False, places=12).filter(bool),
)
HALF = Decimal("5E-11")


@pytest.mark.parity(69)
@given(RESTS, PRICES)
def test_an_account_is_rounded_once_and_no_grant_by_more_than_a_place(rests: list[Decimal], price: Decimal) -> None:
    parts = converted(rests, price)
    assert len(parts) == len(rests)
    with localcontext(prec=120):
        before, after = sum(rests, Decimal(0)), sum(parts, Decimal(0))
        exact = before * price
        assert abs(after - exact) <= HALF
        for rest, part in zip(rests, parts, strict=True):
            assert part >= 0
            assert part.as_tuple().exponent == -10
            assert abs(part - rest * price) <= 2 * HALF
            assert part <= rest * price + 2 * HALF
        assert rounding(before, after, price) == after - exact
        assert Decimal(exact_text(after - exact)) == after - exact


@pytest.mark.parity(69)
@given(st.lists(RESTS, max_size=8), PRICES)
def test_the_sum_of_all_roundings_explains_the_whole_difference(hub: list[list[Decimal]], price: Decimal) -> None:
    with localcontext(prec=120):
        told = Decimal(0)
        before = after = Decimal(0)
        for rests in hub:
            parts = converted(rests, price)
            told += rounding(sum(rests, Decimal(0)), sum(parts, Decimal(0)), price)
            before, after = before + sum(rests, Decimal(0)), after + sum(parts, Decimal(0))
        assert after == before * price + told
        assert abs(told) <= HALF * len(hub)


@given(RESTS)
def test_a_price_of_one_changes_nothing(rests: list[Decimal]) -> None:
    assert converted(rests, Decimal(1)) == rests


def test_a_half_goes_up() -> None:
    assert converted([Decimal("0.0000000001")], Decimal("0.5")) == [Decimal("0.0000000001")]
    assert converted([Decimal("0.0000000001")] * 2, Decimal("0.5")) == [Decimal("0.0000000001"), Decimal(0)]


def test_the_same_price_is_the_same_conversion_however_it_is_written() -> None:
    assert conversion_id("0.0000025") == conversion_id("2.5E-6") == conversion_id("0.00000250")
    assert conversion_id("0.0000025") != conversion_id("400000")
