"""Rates in the original's shapes: nothing of a price is lost on the way in, on the way out, or by a change."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.rpc.catalog import About, ImageOptions, PieceValue, TierValues, Values
from contracts.rpc.rate_rows import FoundRate
from contracts.usage import Unit
from gateway.api import rate_shapes as shapes

PRICE = st.decimals(0, Decimal(10) ** 17, allow_nan=False, places=20).map(lambda price: format(price, "f"))
MAYBE = st.none() | PRICE
UNITS = {"cache_read": MAYBE, "cache_write": MAYBE, "cache_write_1h": MAYBE, "reasoning": MAYBE}
TIER = st.builds(TierValues, above=st.integers(1, 10**6), input=PRICE, output=PRICE, **UNITS)
PIECE = st.builds(PieceValue, unit=st.sampled_from(Unit), rate=PRICE, size=st.sampled_from(["", "1024x1024"]))
WORDS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
ABOUT = st.builds(
    About,
    display=WORDS,
    description=WORDS,
    max_tokens=st.none() | st.integers(1, 10**6),
    features=st.sampled_from([(), ("tools",), ("thinking", "vision")]),
    images=st.none() | st.builds(ImageOptions, max=st.just(4), size=st.just(("1024x1024",))),
)
FOUND = st.builds(
    FoundRate,
    pattern=st.just("openai/org/some-model"),
    rate_id=st.just("r"),
    version=st.integers(1, 99),
    about=st.none() | ABOUT,
    costs=st.none(),
    tiers=st.lists(TIER, max_size=2).map(tuple),
    pieces=st.lists(PIECE, max_size=2).map(tuple),
    input=PRICE,
    output=PRICE,
    request=PRICE,
    type=st.sampled_from(["chatCompletion", "video"]),
    deprecated=st.booleans(),
    margin_percent=st.none(),
    changed_at=st.none(),
    **UNITS,
)


@given(FOUND)
def test_a_change_that_names_nothing_leaves_every_price_as_it_is(rate: FoundRate) -> None:
    next_one = shapes.changed(rate, shapes.RateBody())
    assert (next_one.pattern, next_one.type, next_one.expected_version) == (rate.pattern, rate.type, rate.version)
    for name in Values.model_fields:
        assert getattr(next_one, name) == getattr(rate, name), name
    if next_one.about is not None:
        assert next_one.about == rate.about
    assert (next_one.deprecated, next_one.effective_at, next_one.unit_costs) == (None, None, None)


@given(FOUND)
def test_what_is_shown_can_be_sent_back_and_is_the_same(rate: FoundRate) -> None:
    shown = json.loads(shapes.shown_rate(rate).model_dump_json())
    again = shapes.row("openai", shapes.NewRateBody.model_validate(shown), shown["version"])
    for name in Values.model_fields:
        assert getattr(again, name) == getattr(rate, name), name
    assert shown["inputRate"] == rate.input


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({"inputRate": "3"}, {"input": "3"}),
        ({"inputRate": None, "outputRate": None, "requestRate": None}, {"request": "0"}),
        ({"caching": None}, {"cache_read": None, "cache_write": None, "cache_write_1h": None}),
        ({"caching": {"readRate": "0"}}, {"cache_read": "0", "cache_write": None, "cache_write_1h": None}),
        ({"tiers": []}, {"tiers": ()}),
    ],
)
def test_what_a_body_names_is_changed_and_nothing_else(body: dict[str, Any], changes: dict[str, Any]) -> None:
    tier = TierValues(above=5, input="2", output="4")
    rate = FoundRate(
        pattern="openai/m", rate_id="r", source="operator", effective_at="", version=3, input="1", output="2",
        request="9", cache_read="0.5", cache_write="0.6", cache_write_1h="0.7", tiers=(tier,),
    )  # fmt: skip
    next_one = shapes.changed(rate, shapes.RateBody.model_validate(body))
    expected = {name: getattr(rate, name) for name in Values.model_fields} | changes
    assert {name: getattr(next_one, name) for name in Values.model_fields} == expected


def test_a_model_without_a_name_for_people_gets_one_from_its_own() -> None:
    rate = FoundRate(pattern="openai/org/gpt-4o-mini", rate_id="r", source="", effective_at="", input="1", output="2")
    assert shapes.shown_rate(rate).model_display == "Gpt 4O Mini"
