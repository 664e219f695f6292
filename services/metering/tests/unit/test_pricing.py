from decimal import Decimal, localcontext

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.money import LIMIT, PLACES, to_text
from contracts.usage import TOKENS_MAX, Piece, PieceRate, Rates, Tier, Unit, Usage, UsageSource, piece_rate
from metering.pricing import PricingError, as_texts, bounded, cost
from metering.stored import COUNTS, rates_of, units_text, usage_of

counts = st.integers(min_value=0, max_value=TOKENS_MAX)
rates = st.decimals(min_value=0, max_value=10**6, places=12).map(lambda rate: format(rate, "f"))
sizes = st.sampled_from(("", "512x512", "1024x1024"))
qualities = st.sampled_from(("", "hd"))
amounts = st.decimals(min_value=0, max_value=10**6, places=3).map(lambda amount: format(amount, "f"))
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    cache_read_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
    cache_write_1h_tokens=counts,
    pieces=st.lists(
        st.builds(Piece, st.sampled_from(tuple(map(str, Unit))), amounts, sizes, qualities), max_size=3
    ).map(tuple),
)
tiers = st.builds(
    Tier,
    above=st.integers(min_value=1, max_value=3 * TOKENS_MAX),
    input=rates,
    output=rates,
    cache_read=st.none() | rates,
    cache_write=st.none() | rates,
    cache_write_1h=st.none() | rates,
    reasoning=st.none() | rates,
)
all_rates = st.builds(
    Rates,
    input=rates,
    output=rates,
    cache_read=st.none() | rates,
    cache_write=st.none() | rates,
    reasoning=st.none() | rates,
    request=rates,
    cache_write_1h=st.none() | rates,
    tiers=st.lists(tiers, max_size=3, unique_by=lambda tier: tier.above).map(
        lambda found: tuple(sorted(found, key=lambda tier: tier.above))
    ),
    pieces=st.lists(
        st.builds(PieceRate, st.sampled_from(tuple(map(str, Unit))), rates, sizes, qualities), max_size=4
    ).map(tuple),
)


def _first(*texts: str | None) -> Decimal:
    return next(Decimal(text) for text in texts if text is not None)


def _exact(usage: Usage, frozen: Rates) -> Decimal:
    """The bill, computed another way."""
    part: Rates | Tier = frozen
    for tier in frozen.tiers:
        if usage.prompt_tokens > tier.above:
            part = tier
    return (
        Decimal(frozen.request)
        + usage.input_tokens * Decimal(part.input)
        + usage.output_tokens * Decimal(part.output)
        + usage.cache_read_tokens * _first(part.cache_read, part.input)
        + usage.cache_write_tokens * _first(part.cache_write, part.input)
        + usage.cache_write_1h_tokens * _first(part.cache_write_1h, part.cache_write, part.input)
        + usage.reasoning_tokens * _first(part.reasoning, part.output)
        + sum((Decimal(piece.amount) * piece_rate(frozen.pieces, piece) for piece in usage.pieces), Decimal(0))
    )


@pytest.mark.parity(52, 53)
@given(usages, all_rates)
def test_cost_is_the_exact_sum_rounded_once(usage: Usage, frozen: Rates) -> None:
    with localcontext(prec=80):
        assert abs(cost(usage, frozen) - _exact(usage, frozen)) <= PLACES / 2


@given(usages, all_rates, st.integers(min_value=0, max_value=1000))
def test_more_output_and_more_pieces_never_cost_less(usage: Usage, frozen: Rates, more: int) -> None:
    pieces = tuple(
        Piece(piece.unit, str(Decimal(piece.amount) + more), piece.size, piece.quality) for piece in usage.pieces
    )
    grown = msgspec.structs.replace(usage, output_tokens=usage.output_tokens + more, pieces=pieces)
    assert cost(grown, frozen) >= cost(usage, frozen) >= 0


@given(usages, all_rates, st.integers(min_value=1, max_value=1000), st.data())
def test_a_longer_prompt_never_costs_less_where_tiers_rise(
    usage: Usage, base: Rates, more: int, data: st.DataObject
) -> None:
    """Rates that were set by hand rise from tier to tier: anything else is refused."""
    factor, above = data.draw(st.integers(min_value=1, max_value=5)), data.draw(st.integers(1, TOKENS_MAX))
    dearer = {
        name: None if getattr(base, name) is None else format(Decimal(getattr(base, name)) * factor, "f")
        for name in ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
    }
    frozen = msgspec.structs.replace(base, tiers=(Tier(above, **dearer),))  # type: ignore[arg-type]
    unit = data.draw(st.sampled_from(("input_tokens", "cache_read_tokens", "cache_write_tokens")))
    grown = msgspec.structs.replace(usage, **{unit: getattr(usage, unit) + more})
    assert cost(grown, frozen) >= cost(usage, frozen)


@pytest.mark.parametrize(
    ("usage", "credits_"),
    [
        (Usage(input_tokens=200_000, output_tokens=1), "200001"),
        (Usage(input_tokens=200_001, output_tokens=1), "400006"),
        (Usage(input_tokens=1, cache_read_tokens=200_000), "400002"),
        (Usage(input_tokens=1, cache_write_1h_tokens=200_000), "400002"),
        (Usage(input_tokens=199_999, output_tokens=500_000), "699999"),
        (Usage(input_tokens=1_000_001), "3000003"),
    ],
)
def test_a_prompt_above_a_border_pays_that_tier_for_all_its_tokens(usage: Usage, credits_: str) -> None:
    frozen = Rates("1", "1", tiers=(Tier(200_000, "2", "4"), Tier(1_000_000, "3", "4")))
    assert cost(usage, frozen) == Decimal(credits_)


@pytest.mark.parity(53)
def test_an_explicit_zero_is_a_price_and_an_absent_cache_rate_is_the_input_rate() -> None:
    used = Usage(cache_read_tokens=10, cache_write_tokens=10, cache_write_1h_tokens=10, reasoning_tokens=10)
    assert cost(used, Rates("1", "2")) == 50
    assert cost(used, Rates("1", "2", cache_read="0", cache_write="0", reasoning="0")) == 0
    assert cost(used, Rates("1", "2", cache_write="3", cache_write_1h="5")) == 10 + 30 + 50 + 20


def test_images_seconds_and_characters_cost_by_the_piece() -> None:
    frozen = Rates(
        pieces=(
            PieceRate("image", "0.04", "1024x1024"),
            PieceRate("image", "0.08", "1024x1024", "hd"),
            PieceRate("audio_second", "0.0001"),
            PieceRate("character", "0.000015"),
            PieceRate("video_second", "0.1"),
        )
    )
    used = Usage(
        pieces=(
            Piece("image", "2", "1024x1024", "hd"),
            Piece("audio_second", "12.5"),
            Piece("character", "1000"),
            Piece("video_second", "8"),
        )
    )
    assert cost(used, frozen) == Decimal("0.16") + Decimal("0.00125") + Decimal("0.015") + Decimal("0.8")


@given(usages, all_rates)
def test_what_the_books_keep_gives_the_same_charge_again(usage: Usage, frozen: Rates) -> None:
    row = {name: getattr(usage, name) for name in COUNTS} | {
        "usage_source": str(usage.source),
        "units": units_text(usage),
        "rates": msgspec.json.encode(frozen).decode(),
    }
    again = rates_of(row)
    assert again is not None
    assert cost(usage_of(row), again) == cost(usage, frozen)


@pytest.mark.parametrize("amount", ["NaN", "-1", "Infinity", "1e400000", "x", "", "9" * 41])
def test_an_amount_that_is_none_is_bounded_and_marked(amount: str) -> None:
    usage = bounded(Usage(input_tokens=3, pieces=(Piece("image", amount), Piece("image", "2"))))
    assert usage.source is UsageSource.ESTIMATED
    assert 0 <= cost(usage, Rates("1", "1", pieces=(PieceRate("image", "1"),))) < LIMIT
    assert usage.pieces[1].amount == "2"


def test_credible_pieces_are_left_as_they_are() -> None:
    usage = Usage(pieces=(Piece("image", "2", "1024x1024", "hd"),))
    assert bounded(usage) is usage


def test_a_usage_event_names_every_rate() -> None:
    frozen = Rates(
        "1",
        "2",
        cache_write_1h="3",
        tiers=(Tier(200_000, "4", "5", cache_read="6"),),
        pieces=(PieceRate("image", "7"), PieceRate("image", "8", "s", "hd"), PieceRate("image", "9", quality="hd")),
    )
    assert as_texts(frozen) == {
        "input": "1",
        "output": "2",
        "request": "0",
        "cache_write_1h": "3",
        "input above 200000": "4",
        "output above 200000": "5",
        "cache_read above 200000": "6",
        "image": "7",
        "image s hd": "8",
        "image quality hd": "9",
    }


@given(st.lists(st.integers(min_value=-(10**30), max_value=10**30), min_size=5, max_size=5), all_rates)
def test_absurd_counts_are_bounded_and_marked(raw: list[int], frozen: Rates) -> None:
    usage = bounded(Usage(raw[0], raw[1], raw[2], raw[3], raw[4]))
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
    for wrong in (
        Rates(input=rate),
        Rates(cache_write_1h=rate),
        Rates(tiers=(Tier(5, rate, "1"),)),
        Rates(pieces=(PieceRate("image", rate),)),
    ):
        with pytest.raises(PricingError):
            cost(Usage(input_tokens=10), wrong)
