"""Credits: ten places, half up, plain strings, a bounded domain, and no float anywhere."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from contracts import money
from contracts.money import Credits, CreditsError

AMOUNTS = st.decimals(0, Decimal("1E18") - 1, allow_nan=False, allow_infinity=False, places=10)
FINER = st.integers(0, 10**32 - 1).map(lambda units: Decimal(units).scaleb(-14))


class Priced(BaseModel):
    credits: Credits


@given(AMOUNTS)
def test_amount_survives_the_wire(amount: Decimal) -> None:
    text = money.to_text(amount)
    assert money.parse(text) == amount
    assert "E" not in text.upper()
    assert len(text.partition(".")[2]) == 10


@given(FINER)
def test_rounding_is_half_up_at_ten_places(amount: Decimal) -> None:
    units, rest = divmod(int(amount.scaleb(14)), 10_000)
    expected = units + (1 if rest >= 5_000 else 0)
    assert int(money.rounded(amount).scaleb(10)) == expected


def test_half_of_the_last_place_goes_up() -> None:
    assert money.to_text(Decimal("0.00000000005")) == "0.0000000001"
    assert money.to_text(Decimal("0.00000000004999")) == "0.0000000000"
    assert money.to_text(Decimal("0.00000000015")) == "0.0000000002"


@given(FINER)
def test_a_callers_decimal_context_changes_nothing(amount: Decimal) -> None:
    expected = money.rounded(amount)
    with localcontext() as context:
        context.prec = 3
        context.rounding = "ROUND_DOWN"
        assert money.rounded(amount) == expected


@pytest.mark.parametrize(
    "text",
    ["NaN", "sNaN", "Infinity", "-Infinity", "-0.0000000001", "-1", "1E18", "1e400", "1,5", "0x1", "abc", "", "1 2"],
)
def test_text_outside_the_domain_is_refused(text: str) -> None:
    with pytest.raises(CreditsError):
        money.parse(text)
    with pytest.raises(ValidationError):
        Priced.model_validate({"credits": text})


@given(st.text(max_size=30))
def test_any_text_is_an_amount_in_the_domain_or_an_error(text: str) -> None:
    try:
        amount = money.parse(text)
    except CreditsError:
        return
    assert 0 <= amount < money.LIMIT


@pytest.mark.parametrize("value", [0.1, 1.0, float("nan"), True, None, [], {}])
def test_floats_and_other_types_are_no_credits(value: object) -> None:
    with pytest.raises(ValidationError):
        Priced.model_validate({"credits": value})


@given(AMOUNTS)
def test_model_writes_credits_as_a_plain_string_and_reads_them_back(amount: Decimal) -> None:
    document = Priced(credits=amount).model_dump_json()
    assert document == f'{{"credits":"{money.to_text(amount)}"}}'
    assert Priced.model_validate_json(document).credits == amount


def test_negative_zero_is_written_without_its_sign() -> None:
    assert money.to_text(money.parse("-0")) == "0.0000000000"
