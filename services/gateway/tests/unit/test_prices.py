import asyncio
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import ProviderView, RateView, Snapshot
from contracts.usage import Candidate, Piece, PieceRate, Rates, Tier, Usage
from gateway.admission.peek import Peek
from gateway.admission.prices import (
    MEDIA_TOKENS,
    TOOLS_TOKENS,
    Prices,
    hold_input_tokens,
    hold_output_tokens,
    hold_upper_bound,
)


def _rate(pattern: str, price: str = "0.001") -> RateView:
    return RateView(
        rate_id=f"rate {pattern}",
        pattern=pattern,
        input=price,
        output=price,
        source="test",
        effective_at="2026-11-01T00:00:00Z",
    )


SNAPSHOT = Snapshot(
    revision=3,
    providers=(
        ProviderView(name="openai", kind="openai", models=("gpt-4o", "gpt-new")),
        ProviderView(name="azure", kind="openai", models=("gpt-4o", "meta/llama")),
        ProviderView(name="relay", kind="openai", models=None),
        ProviderView(name="demo", kind="demo", models=("echo",)),
    ),
    rates=(
        _rate("openai/gpt-4o"),
        _rate("relay/*-mini", "2"),
        _rate("relay/*", "3"),
        _rate("relay/exact", "9"),
        _rate("demo/echo"),
        _rate("azure/*"),
    ),
)


async def _prices(
    snapshot: Snapshot = SNAPSHOT,
    billing: Literal["credit", "off"] = "credit",
    unpriced: Literal["refuse", "free"] = "refuse",
) -> Prices:
    async def ask() -> Snapshot:
        return snapshot

    prices = Prices(ask, billing=billing, unpriced=unpriced)
    await prices.refresh()
    return prices


def _names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [f"{candidate.provider}/{candidate.model}" for candidate in candidates]


@pytest.mark.parity(91)
async def test_a_prefixed_name_goes_to_its_provider_whatever_the_model() -> None:
    prices = await _prices()
    assert _names(prices.resolve("openai/gpt-4o")) == ["openai/gpt-4o"]
    assert _names(prices.resolve("relay/some/thing")) == ["relay/some/thing"]


async def test_a_bare_name_goes_to_all_that_list_it() -> None:
    prices = await _prices()
    assert _names(prices.resolve("gpt-4o")) == ["openai/gpt-4o", "azure/gpt-4o"]
    assert _names(prices.resolve("meta/llama")) == ["azure/meta/llama"]


@pytest.mark.parametrize("name", ["nothing", "nobody/gpt-4o", "openai/", "/", "OPENAI/gpt-4o"])
async def test_an_unknown_model_is_404_and_says_where_to_look(name: str) -> None:
    with pytest.raises(HubError) as caught:
        (await _prices()).resolve(name)
    assert (caught.value.code, caught.value.status, caught.value.param) == (ErrorCode.MODEL_NOT_FOUND, 404, "model")
    assert "/models" in caught.value.message


@pytest.mark.parity(57)
async def test_a_model_without_a_price_is_400_unless_it_may_be_free() -> None:
    with pytest.raises(HubError) as caught:
        (await _prices()).resolve("openai/gpt-new")
    assert (caught.value.code, caught.value.status) == (ErrorCode.MODEL_UNPRICED, 400)
    (free,) = (await _prices(unpriced="free")).resolve("openai/gpt-new")
    assert (free.rates, free.rate_id) == (Rates(), "")


async def test_unpriced_candidates_are_left_out_while_others_have_a_price() -> None:
    snapshot = SNAPSHOT.model_copy(update={"rates": (_rate("azure/*"),)})
    assert _names((await _prices(snapshot)).resolve("gpt-4o")) == ["azure/gpt-4o"]


async def test_billing_off_makes_every_rate_zero() -> None:
    (candidate,) = (await _prices(billing="off")).resolve("openai/gpt-4o")
    assert (candidate.rates, candidate.rate_id) == (Rates(), "")


async def test_the_first_pattern_that_fits_counts() -> None:
    prices = await _prices()
    assert [prices.resolve(f"relay/{name}")[0].rates.input for name in ("a-mini", "a", "exact")] == ["2", "3", "3"]
    exact_first = SNAPSHOT.model_copy(update={"rates": (_rate("relay/exact", "9"), _rate("relay/*", "3"))})
    assert (await _prices(exact_first)).resolve("relay/exact")[0].rates.input == "9"


async def test_pattern_signs_other_than_the_star_mean_themselves() -> None:
    snapshot = SNAPSHOT.model_copy(update={"rates": (_rate("relay/a.b*"),)})
    prices = await _prices(snapshot)
    prices.resolve("relay/a.b-1")
    with pytest.raises(HubError):
        prices.resolve("relay/axb-1")


async def test_models_are_listed_once_with_prefix_and_only_when_they_can_be_called() -> None:
    listed = (await _prices()).catalog.models()
    assert [model.id for model in listed] == ["azure/gpt-4o", "azure/meta/llama", "demo/echo", "openai/gpt-4o"]
    assert all(model.created == 1793491200 for model in listed)


async def test_before_the_first_snapshot_calls_are_503() -> None:
    async def ask() -> Snapshot:
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "provider-router does not answer")

    prices = Prices(ask, billing="credit", unpriced="refuse")
    assert not prices.ready
    with pytest.raises(HubError) as caught:
        prices.resolve("openai/gpt-4o")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


async def test_a_change_is_read_and_an_outage_keeps_the_last_snapshot() -> None:
    answers: list[Snapshot | HubError] = [SNAPSHOT]
    asked = asyncio.Event()

    async def ask() -> Snapshot:
        asked.set()
        answer = answers[0]
        if isinstance(answer, HubError):
            raise answer
        return answer

    prices = Prices(ask, billing="credit", unpriced="refuse")
    task = asyncio.create_task(prices.keep_fresh())
    try:
        async with asyncio.timeout(5):
            await asked.wait()
            await asyncio.sleep(0)
            assert prices.resolve("openai/gpt-4o")[0].rates.input == "0.001"
            answers[0] = HubError(ErrorCode.SERVICE_UNAVAILABLE, "away")
            asked.clear()
            prices.changed(SNAPSHOT.revision)  # known already: nothing is asked
            await asyncio.sleep(0)
            assert not asked.is_set()
            prices.changed(4)
            await asked.wait()
            assert prices.resolve("openai/gpt-4o")[0].rates.input == "0.001"
            answers[0] = SNAPSHOT.model_copy(update={"revision": 4, "rates": (_rate("openai/*", "7"),)})
            while prices.catalog.revision != 4:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)
            assert prices.resolve("openai/gpt-4o")[0].rates.input == "7"
    finally:
        task.cancel()


def _peek(**changes: object) -> Peek:
    plain = Peek(
        "m",
        stream=False,
        include_usage=False,
        choices=1,
        max_output_tokens=None,
        media_parts=0,
        inline_bytes=0,
        tools=False,
        body_bytes=1000,
    )
    return plain._replace(**changes)  # type: ignore[arg-type]


def test_input_is_bounded_by_bytes_pieces_and_tools() -> None:
    assert hold_input_tokens(_peek()) == 1000
    assert hold_input_tokens(_peek(tools=True)) == 1000 + TOOLS_TOKENS
    assert hold_input_tokens(_peek(media_parts=2, inline_bytes=640)) == 360 + 2 * MEDIA_TOKENS + 10


def test_output_is_the_smaller_of_limit_and_slice_for_each_choice() -> None:
    assert hold_output_tokens(_peek(choices=3), 4096) == 3 * 4096
    assert hold_output_tokens(_peek(choices=3, max_output_tokens=10), 4096) == 30
    assert hold_output_tokens(_peek(max_output_tokens=10_000), 4096) == 4096


def test_the_dearest_candidate_and_rate_decide_and_the_sum_is_rounded_up() -> None:
    cheap = Candidate("a", "m", Rates(input="0.0001", output="0.0001"))
    cached = Candidate(
        "b", "m", Rates(input="0.0001", output="0.0001", cache_write="0.0003", reasoning="0.0005", request="1")
    )
    assert hold_upper_bound(_peek(max_output_tokens=10), (cheap, cached), 4096) == Decimal("1.305")
    tiny = Candidate("a", "m", Rates(input="0.00000000000001"))
    assert hold_upper_bound(_peek(), (tiny,), 4096) == Decimal("0.0000000001")
    assert hold_upper_bound(_peek(), (Candidate("a", "m", Rates()),), 4096) == 0


def test_the_dearest_tier_that_the_body_can_reach_is_held_and_none_beyond() -> None:
    tiered = Candidate("a", "m", Rates("1", "1", tiers=(Tier(1000, "2", "5"), Tier(5000, "9", "9"))))
    assert hold_upper_bound(_peek(body_bytes=1000, max_output_tokens=10), (tiered,), 4096) == 1010
    assert hold_upper_bound(_peek(body_bytes=1001, max_output_tokens=10), (tiered,), 4096) == 2052
    assert hold_upper_bound(_peek(body_bytes=5001, max_output_tokens=10), (tiered,), 4096) == 45099


def test_pieces_are_held_at_the_rate_that_fits_them() -> None:
    images = Candidate("a", "m", Rates(pieces=(PieceRate("image", "0.04"), PieceRate("image", "0.08", quality="hd"))))
    held = hold_upper_bound(_peek(), (images,), 4096, (Piece("image", "3", quality="hd"),))
    assert held == Decimal("0.24")


@pytest.mark.parity(111)
async def test_a_deprecated_model_is_neither_listed_nor_served_even_without_billing() -> None:
    gone = _rate("openai/gpt-4o").model_copy(update={"deprecated": True})
    snapshot = SNAPSHOT.model_copy(update={"rates": (gone, *SNAPSHOT.rates[1:])})
    for billing in ("credit", "off"):
        prices = await _prices(snapshot, billing=billing, unpriced="free")
        assert "openai/gpt-4o" not in [model.id for model in prices.catalog.models()]
        assert _names(prices.resolve("gpt-4o")) == ["azure/gpt-4o"]
        with pytest.raises(HubError) as caught:
            prices.resolve("openai/gpt-4o")
        assert (caught.value.code, caught.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")
        assert "deprecated" in caught.value.message
        with pytest.raises(HubError):
            prices.catalog.model("openai/gpt-4o")


async def test_rates_travel_with_all_their_units() -> None:
    whole = RateView.model_validate(
        {
            **_rate("openai/gpt-4o").model_dump(),
            "cache_write_1h": "4",
            "tiers": [{"above": 10, "input": "5", "output": "6", "cache_read": "7"}],
            "pieces": [{"unit": "image", "rate": "8", "size": "s", "quality": "q"}],
        }
    )
    (candidate,) = (await _prices(SNAPSHOT.model_copy(update={"rates": (whole,)}))).resolve("openai/gpt-4o")
    assert candidate.rates == Rates(
        "0.001",
        "0.001",
        cache_write_1h="4",
        tiers=(Tier(10, "5", "6", "7"),),
        pieces=(PieceRate("image", "8", "s", "q"),),
    )


_RATE = st.decimals(0, 10, places=12).map(lambda value: format(value, "f"))
_SOME = st.none() | _RATE
_TIERS = st.lists(
    st.builds(Tier, st.integers(1, 10**6), _RATE, _RATE, _SOME, _SOME, _SOME, _SOME),
    max_size=2,
    unique_by=lambda tier: tier.above,
).map(lambda found: tuple(sorted(found, key=lambda tier: tier.above)))
_RATES = st.builds(Rates, _RATE, _RATE, _SOME, _SOME, _SOME, _RATE, _SOME, _TIERS)


def _bill(used: Usage, rates: Rates) -> Decimal:
    """What a usage costs, written down once more."""
    part: Rates | Tier = rates
    for tier in rates.tiers:
        if used.prompt_tokens > tier.above:
            part = tier
    write = part.input if part.cache_write is None else part.cache_write
    return (
        used.input_tokens * Decimal(part.input)
        + used.cache_read_tokens * Decimal(part.input if part.cache_read is None else part.cache_read)
        + used.cache_write_tokens * Decimal(write)
        + used.cache_write_1h_tokens * Decimal(write if part.cache_write_1h is None else part.cache_write_1h)
        + used.output_tokens * Decimal(part.output)
        + used.reasoning_tokens * Decimal(part.output if part.reasoning is None else part.reasoning)
        + Decimal(rates.request)
    )


@given(st.lists(_RATES, min_size=1, max_size=3), st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_hold(rates: list[Rates], data: st.DataObject) -> None:
    candidates = tuple(Candidate(str(index), "m", rate) for index, rate in enumerate(rates))
    seen = _peek(body_bytes=data.draw(st.integers(1, 10**6)), choices=data.draw(st.integers(1, 4)))
    hold = hold_upper_bound(seen, candidates, 4096)
    prompt, outputs = data.draw(st.integers(0, hold_input_tokens(seen))), hold_output_tokens(seen, 4096)
    read, write, hour = (data.draw(st.integers(0, prompt)) // 3 for _ in range(3))
    reasoning = data.draw(st.integers(0, outputs))
    used = Usage(prompt - read - write - hour, outputs - reasoning, read, write, reasoning, cache_write_1h_tokens=hour)
    assert hold >= _bill(used, data.draw(st.sampled_from(rates)))
    assert hold.as_tuple().exponent == -10
