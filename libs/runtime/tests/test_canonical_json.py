"""Canonical JSON: the recorded texts, and its rules for whatever comes."""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.canonical_json import CanonicalError, canonical

VECTORS = json.loads((Path(__file__).parents[3] / "tests/payment_kit/fixtures/component-call.json").read_text("utf-8"))[
    "sameApplication"
]["signing"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("case", VECTORS, ids=itemgetter("what"))
def test_recorded_objects_have_the_recorded_text(case: dict[str, Any]) -> None:
    assert canonical(case["signedObject"]) == bytes.fromhex(case["canonicalUtf8Hex"])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1"), (-0.0, "0"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (1.5e21, "1.5e+21"),
        (1e-6, "0.000001"), (1e-7, "1e-7"), (1.25e-7, "1.25e-7"), (123.456, "123.456"), (-0.5, "-0.5"),
        (2**53 + 1, "9007199254740992"), (10**400, "null"), (float("inf"), "null"), (5e-324, "5e-324"),
    ],
)  # fmt: skip
def test_numbers_are_printed_as_javascript_prints_them(number: float, text: str) -> None:
    assert canonical(number) == text.encode()


@settings(max_examples=50)
@given(VALUES)
def test_reading_the_text_gives_the_value_and_the_text_again(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text, parse_int=float) == value
    assert canonical(json.loads(text)) == text


def test_members_are_sorted_by_utf16_units() -> None:
    assert canonical({"\ue000": 1, "😀": 2, "b": 3, "B": 4, "10": 5, "9": 6}) == (
        '{"10":5,"9":6,"B":4,"b":3,"😀":2,"\ue000":1}'.encode()
    )


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}, object(), [b"x"]])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical(value)
