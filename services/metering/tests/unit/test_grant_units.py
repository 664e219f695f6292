"""What a grant comes to in another unit, and what is asked of Payment Kit for it."""

import json
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.money import LIMIT
from metering.payment_kit.client import PaymentKitError
from metering.payment_kit.grant_list import ListedGrant, read
from metering.payment_kit.grant_units import ended_grant, factor, is_open, new_grant, worth

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
PRICES = st.decimals("0.000000001", "999999", places=9, allow_nan=False).filter(lambda price: price > 0)


def grant(**changes: Any) -> ListedGrant:
    raw = {
        "id": "crdg_1", "customer_id": "cus_1", "currency_id": "pc_1", "status": "granted", "name": "Pack",
        "amount": "100000000000", "remaining_amount": "40000000000", "category": "paid", "priority": 7,
        "expires_at": 2_000_000_000, "effective_at": 0, "metadata": {"grantId": "x"},
    }  # fmt: skip
    return read(raw | changes)


@given(st.integers(0, 10**32), st.integers(0, 18), PRICES)
def test_an_amount_is_divided_by_its_places_and_the_factor_and_rounded_half_up_once(
    units: int, places: int, price: Decimal
) -> None:
    found = worth(str(units), places, price)
    exact = Fraction(units, 10**places) * Fraction(price)
    assert Fraction(found.before) == Fraction(units, 10**places)
    if found.problem == "too_much":
        assert exact >= Fraction(LIMIT) - Fraction(1, 10**10)
        return
    off = Fraction(found.after) - exact
    assert Fraction(-1, 2 * 10**10) < off <= Fraction(1, 2 * 10**10)
    assert bool(found.problem) == (found.after == 0)


def test_the_originals_example_comes_out() -> None:
    assert worth("4000000000000000", 10, Decimal("0.0000025")).after == 1
    assert worth("1", 0, Decimal("0.00000000005")).after == Decimal("1E-10"), "half goes up"
    assert (factor(Decimal("0.0000025")), factor(Decimal(3)), factor(Decimal(1))) == ("400000", "0.3333333333", "1")


@given(PRICES)
def test_a_factor_has_no_exponent_and_is_the_price_turned_over(price: Decimal) -> None:
    text = factor(price)
    assert "E" not in text
    with localcontext(prec=60):
        assert Decimal(text) == (1 / price).quantize(Decimal("1E-10"), ROUND_HALF_UP)


@pytest.mark.parametrize("remaining", ["1.5", "-1", "", None, True, 1.5, "NaN", [], {}, "9" * 61, "\u0661"])
def test_what_is_no_amount_is_no_worth(remaining: Any) -> None:
    assert worth(remaining, 10, Decimal(1)).problem == "unreadable"


@pytest.mark.parametrize(
    ("changes", "is_left"),
    [
        ({}, True),
        ({"status": "pending"}, True),
        ({"status": "depleted"}, False),
        ({"status": "voided"}, False),
        ({"status": "something new"}, False),
        ({"remaining_amount": "0"}, False),
        ({"remaining_amount": 0}, False),
        ({"remaining_amount": "1.5"}, True),
        ({"expires_at": 1}, False),
        ({"expires_at": None}, True),
        ({"expires_at": "2020-01-01T00:00:00Z"}, False),
        ({"expires_at": "whenever"}, True),
    ],
)
def test_only_what_can_still_be_spent_is_moved(changes: dict[str, Any], is_left: bool) -> None:
    assert is_open(grant(**changes), int(NOW.timestamp())) is is_left


def test_a_new_grant_is_asked_for_with_what_the_old_one_was() -> None:
    value = worth("40000000000", 10, Decimal("0.25"))
    wanted = new_grant(grant(), value, "pc_2", Decimal("0.25"), NOW)
    assert wanted == {
        "customer_id": "cus_1", "currency_id": "pc_2", "amount": "1", "name": "[Migrated] Pack",
        "expires_at": 2_000_000_000, "category": "paid", "priority": 7,
        "metadata": {
            "grantId": "x", "migratedFromGrantId": "crdg_1", "migratedAt": "2026-11-26T09:30:00.000Z",
            "originalAmount": "4", "conversionFactor": "4",
        },
    }  # fmt: skip
    json.dumps(wanted)
    bare = new_grant(
        grant(name=None, priority=None, category=None, expires_at=0, metadata=None, effective_at=2_100_000_000),
        value, "pc_2", Decimal("0.25"), NOW,
    )  # fmt: skip
    assert (bare["name"], bare["category"], bare["expires_at"]) == ("[Migrated]", "promotional", 0)
    assert ("priority" in bare, bare["effective_at"]) == (False, 2_100_000_000)
    assert ended_grant(grant(), "crdg_2") == {"expired": True, "metadata": {"grantId": "x", "migratedTo": "crdg_2"}}


def test_customer_and_currency_are_read_by_id_or_as_an_object() -> None:
    nested = grant(customer_id=None, customer={"id": "cus_9"}, currency_id=None, paymentCurrency={"id": "pc_9"})
    assert (nested.customer_id, nested.currency_id) == ("cus_9", "pc_9")
    assert grant(customer_id=3, customer="cus_8").customer_id == "cus_8"
    assert grant(currency_id=None).currency_id == ""
    assert grant(metadata={"migratedFromGrantId": None, "migratedTo": "crdg_2"}).moved_to == "crdg_2"


@pytest.mark.parametrize("raw", [None, [], "crdg_1", {}, {"id": ""}, {"id": 1}])
def test_what_is_no_grant_is_refused(raw: Any) -> None:
    with pytest.raises(PaymentKitError) as refused:
        read(raw)
    assert refused.value.reason == "no_grant"


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_no_member_of_a_grant_breaks_its_reading(value: Any) -> None:
    members = ("customer_id", "currency_id", "status", "remaining_amount", "name", "category", "priority",
               "expires_at", "effective_at", "metadata")  # fmt: skip
    for member in members:
        found = grant(**{member: value})
        is_open(found, 0)
        worth(found.remaining, 10, Decimal(1))
