"""Which rate counts for a model, and what the price package contributes."""

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import data_snapshot, types

from contracts.rpc.catalog import RateView, Values
from provider_router.catalog import package
from provider_router.catalog.costs import Policy, plain
from provider_router.catalog.package import PackageError, PackagePrices, PackageRate
from provider_router.catalog.rates import in_force, rate_for
from provider_router.sql.rate_rows import RateRow

NOW = datetime(2026, 11, 26, tzinfo=UTC)
DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")
KNOWN = ("anthropic", "openai")


def row(pattern: str, price: str = "1", source: str = "operator") -> RateRow:
    return RateRow(f"id-{pattern}", 1, pattern, Values(input=price, output=price), source, NOW)


@pytest.fixture(scope="module")
def prices() -> PackagePrices:
    return package.resolve(KNOWN, NOW)


def test_the_most_specific_pattern_of_the_operator_counts() -> None:
    rates = in_force([row("*/*"), row("x/a*"), row("x/*"), row("x/ab")], PackagePrices(), demo=True)
    found = [rate_for(rates, name) for name in ("x/ab", "x/ac", "x/c", "y/c", "demo/echo")]
    assert [rate.pattern for rate in found if rate] == ["x/ab", "x/a*", "x/*", "*/*", "*/*"]


def test_an_operators_pattern_goes_before_the_package_however_broad(prices: PackagePrices) -> None:
    rates = in_force([row("openai/*", "0")], prices, demo=True)
    assert _found(rates, "openai/gpt-4o").source == "operator"
    assert _found(rates, "anthropic/claude-haiku-4-5").source == f"genai-prices {prices.version}"


def test_imported_rates_come_after_those_set_by_hand_and_before_the_package(prices: PackagePrices) -> None:
    stored = [row("openai/gpt-4o", "7", "genai-prices 1"), row("anthropic/*", "9")]
    rates = in_force(stored, prices, demo=False)
    assert _found(rates, "openai/gpt-4o").input == "7"
    assert _found(rates, "openai/gpt-4o-mini").source == f"genai-prices {prices.version}"
    by_hand = in_force([row("openai/gpt-4o", "7", "genai-prices 1"), row("openai/*", "0")], prices, demo=False)
    assert _found(by_hand, "openai/gpt-4o").input == "0"


def test_the_packages_prices_are_marked_up(prices: PackagePrices) -> None:
    rates = in_force([], prices, demo=False, policy=Policy(Decimal(2), Decimal("0.5")))
    assert _found(rates, "openai/gpt-4o-mini").input == "0.0000003060"


def test_the_demonstration_provider_costs_something() -> None:
    rate = _found(in_force([], PackagePrices(), demo=True), "demo/echo")
    assert (rate.input, rate.output, rate.source) == ("0.000001", "0.000002", "demo")


@pytest.mark.parametrize("name", ["my-llm/gpt-4o", "openai/unheard-of", "gpt-4o", "anthropic/claude-sonnet-9"])
def test_a_price_that_nobody_named_is_not_guessed(prices: PackagePrices, name: str) -> None:
    assert rate_for(in_force([], prices, demo=True), name) is None


def test_prices_of_the_package_are_credits_per_token(prices: PackagePrices) -> None:
    rate = _found(in_force([], prices, demo=False), "openai/gpt-4o-mini")
    assert (rate.input, rate.output, rate.cache_read) == ("0.00000015", "0.0000006", "0.000000075")


def test_dated_names_have_the_price_of_their_model(prices: PackagePrices) -> None:
    rates = in_force([], prices, demo=False)
    for dated, model in (
        ("anthropic/claude-haiku-4-5-20251001", "anthropic/claude-haiku-4-5"),
        ("anthropic/claude-opus-5-20260901", "anthropic/claude-opus-5"),
        ("openai/gpt-4o-2024-11-20", "openai/gpt-4o"),
    ):
        assert (_found(rates, dated).input, _found(rates, dated).output) == (
            _found(rates, model).input,
            _found(rates, model).output,
        )


def test_our_patterns_give_each_name_the_price_that_the_package_gives_it(prices: PackagePrices) -> None:
    rates = in_force([], prices, demo=False)
    checked = 0
    for provider in data_snapshot.get_snapshot().providers:
        if provider.id not in KNOWN:
            continue
        for name in {name for model in provider.models for name in (model.id, *_names(model.match))}:
            ours = rate_for(rates, f"{provider.id}/{name}")
            # A date in the other form than the package knows is still a date of the same model.
            theirs = provider.find_model(name) or provider.find_model(DATE.sub("", name))
            if ours is None or theirs is None:
                assert ours is None, f"{name} has a price of its own making"
                continue
            expected = theirs.get_prices(NOW)
            assert Decimal(ours.input) * 10**6 == _base(expected.input_mtok), name
            assert Decimal(ours.output) * 10**6 == _base(expected.output_mtok or Decimal(0)), name
            checked += 1
    assert checked > 250


def test_every_listed_model_has_a_price(prices: PackagePrices) -> None:
    rates = in_force([], prices, demo=False)
    listed = [f"{provider}/{model}" for provider in KNOWN for model in prices.models[provider]]
    assert len(listed) > 80
    assert [name for name in listed if rate_for(rates, name) is None] == []


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "gpt-4o-mini"), ("openai", "gpt-4o-2024-08-06"), ("anthropic", "claude-sonnet-4-5-20250929")],
)
def test_models_that_people_ask_for_are_listed(prices: PackagePrices, provider: str, model: str) -> None:
    assert model in prices.models[provider]


def test_what_also_costs_something_else_than_tokens_has_no_price(prices: PackagePrices) -> None:
    rates = in_force([], prices, demo=False)
    for name in ("gpt-audio", "gpt-image-1", "gpt-4o-search-preview", "gpt-4o-audio-preview", "tts-1"):
        assert rate_for(rates, f"openai/{name}") is None


def test_embeddings_cost_their_input_and_are_no_chat_models(prices: PackagePrices) -> None:
    rate = _found(in_force([], prices, demo=False), "openai/text-embedding-3-small")
    assert (rate.input, rate.output) == ("0.00000002", "0")
    assert not [model for model in prices.models["openai"] if "embed" in model]


def test_a_rate_keeps_its_id_until_it_changes(prices: PackagePrices) -> None:
    first = in_force([], prices, demo=True)
    again = in_force([], package.resolve(KNOWN, NOW), demo=True)
    assert [rate.rate_id for rate in first] == [rate.rate_id for rate in again]
    assert len({rate.rate_id for rate in first}) == len(first)
    cheaper = PackagePrices(version="1", rates=(PackageRate(pattern="openai/a", input="1", output="2"),))
    dearer = PackagePrices(version="1", rates=(PackageRate(pattern="openai/a", input="1", output="3"),))
    assert in_force([], cheaper, demo=False)[0].rate_id != in_force([], dearer, demo=False)[0].rate_id


def test_a_dated_price_begins_on_its_day() -> None:
    before, after = datetime(2025, 6, 9, 23, 59, tzinfo=UTC), datetime(2025, 6, 10, tzinfo=UTC)
    early, late = package.resolve(["openai"], before), package.resolve(["openai"], after)
    assert early.changes_at == after
    assert late.changes_at is not None
    assert late.changes_at > after
    assert _found(in_force([], early, demo=False), "openai/o3").output == "0.00004"
    assert _found(in_force([], late, demo=False), "openai/o3").output == "0.000008"


def test_prices_that_depend_on_the_hour_are_left_out() -> None:
    rates = package.resolve(["deepseek"], NOW).rates
    models = next(p for p in data_snapshot.get_snapshot().providers if p.id == "deepseek").models
    by_hour = [
        model.id
        for model in models
        if isinstance(model.prices, list)
        and any(isinstance(price.constraint, types.TimeOfDateConstraint) for price in model.prices)
    ]
    assert by_hour
    assert not {f"deepseek/{name}" for name in by_hour} & {rate.pattern for rate in rates}


async def test_the_child_process_reads_the_same_prices() -> None:
    assert await package.read(["anthropic"]) == package.resolve(["anthropic"], datetime.now(UTC))


async def test_no_child_process_starts_when_no_name_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert await package.read([]) == PackagePrices()


async def test_a_child_process_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PackageError, match="code 1"):
        await package.read(["openai"])


def test_a_rate_is_written_without_exponent() -> None:
    assert plain(Decimal("1E-12")) == "0.000000000001"


def _found(rates: tuple[RateView, ...], name: str) -> RateView:
    rate = rate_for(rates, name)
    assert rate is not None, name
    return rate


def _base(price: "Decimal | types.TieredPrices | None") -> Decimal:
    assert price is not None
    return price if isinstance(price, Decimal) else price.base


def _names(match: types.MatchLogic) -> Iterator[str]:
    """Names that a clause accepts, and longer ones that it may or may not accept."""
    match match:
        case types.ClauseOr():
            for clause in match.or_:
                yield from _names(clause)
        case types.ClauseEquals():
            yield from (match.equals, f"{match.equals}-20260131", f"{match.equals}-2026-01-31", f"{match.equals}-x")
        case types.ClauseStartsWith():
            yield from (match.starts_with, f"{match.starts_with}-20260131", f"{match.starts_with}x")
        case types.ClauseRegex():
            plain_name = re.sub(r"\[-@\]", "-", match.regex.strip("^$").replace(r"\.", "."))
            yield plain_name.replace(r"\d{8}", "20260131").replace(r"\d{4}-\d{2}-\d{2}", "2026-01-31")
