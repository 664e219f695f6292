import asyncio
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import ProviderView, RateView, Snapshot
from contracts.usage import Candidate, Rates
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


_RATE = st.decimals(0, 10, places=12).map(lambda value: format(value, "f"))
_RATES = st.builds(Rates, _RATE, _RATE, st.none() | _RATE, st.none() | _RATE, st.none() | _RATE, _RATE)


@given(st.lists(_RATES, min_size=1, max_size=3), st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_hold(rates: list[Rates], data: st.DataObject) -> None:
    candidates = tuple(Candidate(str(index), "m", rate) for index, rate in enumerate(rates))
    seen = _peek(body_bytes=data.draw(st.integers(1, 10**6)), choices=data.draw(st.integers(1, 4)))
    hold = hold_upper_bound(seen, candidates, 4096)
    inputs, outputs = hold_input_tokens(seen), hold_output_tokens(seen, 4096)
    read, write = (data.draw(st.integers(0, inputs)) // 2 for _ in range(2))
    reasoning = data.draw(st.integers(0, outputs))
    paying = data.draw(st.sampled_from(rates))
    cost = (
        (inputs - read - write) * Decimal(paying.input)
        + read * Decimal(paying.cache_read or paying.input)
        + write * Decimal(paying.cache_write or paying.input)
        + (outputs - reasoning) * Decimal(paying.output)
        + reasoning * Decimal(paying.reasoning or paying.output)
        + Decimal(paying.request)
    )
    assert hold >= cost
    assert hold.as_tuple().exponent == -10
