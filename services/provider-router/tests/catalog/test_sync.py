"""Costs taken over into rates, rates held against costs; prices as the package would give them."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from contracts.rpc.catalog import Values
from provider_router.catalog import package as price_package
from provider_router.catalog.check import Finding, checked
from provider_router.catalog.costs import Policy, drift
from provider_router.catalog.matching import Costs, names
from provider_router.catalog.package import PackagePrices, PackageRate
from provider_router.catalog.sync import SyncOptions, synced, with_margin
from provider_router.sql.rate_rows import NewRate, RateRow

NOW = datetime(2026, 11, 26, tzinfo=UTC)
SOURCE = "genai-prices 9"
AT_COST = Policy(Decimal(0), Decimal(1))


def package(*rates: tuple[str, str, str]) -> PackagePrices:
    return PackagePrices(
        version="9",
        rates=tuple(PackageRate(pattern=pattern, input=input_, output=output) for pattern, input_, output in rates),
        models={pattern.partition("/")[0]: () for pattern, _, _ in rates},
    )


PACKAGE = package(
    ("openai/gpt-a", "1", "2"),
    ("openai/gpt-b*", "3", "4"),
    ("anthropic/claude-x-4*", "5", "6"),
    ("google/gemini-2.5-flash", "7", "8"),
)


def row(pattern: str, input_: str, output: str, **more: Any) -> RateRow:
    made = RateRow(f"id {pattern}", 1, pattern, Values(input=input_, output=output), SOURCE, NOW)
    return replace(made, **more)


def imported(pattern: str, cost: tuple[str, str], margin: str = "0") -> RateRow:
    costs = Values(input=cost[0], output=cost[1])
    rates = Policy(Decimal(margin), Decimal(1)).rates(costs)
    return row(pattern, rates.input, rates.output, costs=costs, cost_source=SOURCE, cost_at=NOW, margin=Decimal(margin))


def options(*providers: str, **changes: Any) -> SyncOptions:
    given = SyncOptions(
        providers=frozenset(providers or ("openai", "anthropic", "google")),
        policy=Policy(Decimal(10), Decimal(1)),
        given_margin=False,
        apply_rates=True,
        deprecate_unmatched=False,
        changed_by="did:admin",
        now=NOW,
    )
    return replace(given, **changes)


def by_pattern(new: list[NewRate]) -> dict[str, NewRate]:
    return {rate.pattern: rate for rate in new}


@pytest.mark.parity(112)
@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("openai/gpt-a", ("1", SOURCE)),
        ("openai/gpt-b*", ("3", SOURCE)),
        ("openai/gpt-b-mini", ("3", SOURCE)),
        ("openai/gpt-a-2026-01-31", ("1", SOURCE)),
        ("anthropic/claude-x-4-0", ("5", SOURCE)),
        ("google/gemini-flash-2.5", ("7", SOURCE)),
        ("relay/gpt-a", ("1", f"inherited:openai {SOURCE}")),
        ("relay/google/gemini-2.5-flash", ("7", f"inherited:google {SOURCE}")),
        ("openai/gpt-c", None),
        ("openai/gpt-*", None),
        ("relay/*", None),
        ("openai/claude-x-4", None),
    ],
)
def test_names_are_matched_by_rule_and_never_guessed(name: str, cost: tuple[str, str] | None) -> None:
    found = Costs(PACKAGE).of(name)
    assert (None if found is None else (found.values.input, found.source)) == cost


def test_other_names_of_a_model() -> None:
    assert list(names("claude-opus-4-0")) == ["claude-opus-4-0", "claude-opus-4"]
    assert list(names("gemini-flash-lite-2.5-2026-01-31")) == [
        "gemini-flash-lite-2.5-2026-01-31",
        "gemini-flash-lite-2.5",
        "gemini-2.5-flash-lite",
    ]
    assert list(names("gpt-4o")) == ["gpt-4o"]


@pytest.mark.parity(110)
def test_an_import_makes_a_rate_of_every_price_and_a_second_one_changes_nothing() -> None:
    first = synced([], PACKAGE, options("openai"))
    made = by_pattern(first.new)
    assert set(made) == {"openai/gpt-a", "openai/gpt-b*"}
    rate = made["openai/gpt-a"]
    assert (rate.values.input, rate.values.output) == ("1.1000000000", "2.2000000000")
    assert (rate.costs, rate.cost_source, rate.margin, rate.change_type) == (
        Values(input="1", output="2"), SOURCE, Decimal(10), "bulk_create",
    )  # fmt: skip
    stored = [
        replace(row(new.pattern, "0", "0"), values=new.values, costs=new.costs, margin=new.margin) for new in first.new
    ]
    again = synced(stored, PACKAGE, options("openai"))
    assert (again.new, again.unchanged) == ([], 2)


def test_a_rate_keeps_its_own_margin_unless_another_is_asked_for() -> None:
    stored = [imported("openai/gpt-a", ("2", "2"), "50")]
    assert by_pattern(synced(stored, PACKAGE, options()).new)["openai/gpt-a"].values.input == "1.5000000000"
    asked = options(given_margin=True)
    assert by_pattern(synced(stored, PACKAGE, asked).new)["openai/gpt-a"].values.input == "1.1000000000"


def test_rates_set_by_hand_keep_their_prices_and_learn_their_costs() -> None:
    stored = [row("openai/gpt-a", "9", "9", source="operator")]
    rate = by_pattern(synced(stored, PACKAGE, options()).new)["openai/gpt-a"]
    assert (rate.values.input, rate.source, rate.costs) == ("9", "operator", Values(input="1", output="2"))


def test_costs_alone_can_be_taken_over() -> None:
    stored = [imported("openai/gpt-a", ("2", "2"))]
    plan = synced(stored, PACKAGE, options(apply_rates=False))
    assert [(rate.pattern, rate.values.input) for rate in plan.new] == [("openai/gpt-a", "2")]
    assert plan.new[0].costs == Values(input="1", output="2")


@pytest.mark.parity(111)
def test_what_the_package_forgot_is_deprecated_when_asked_and_revived_when_it_is_back() -> None:
    gone = imported("openai/gpt-old", ("1", "1"))
    kept = row("openai/mine", "1", "1", source="operator")
    plan = synced([gone, kept], PACKAGE, options("openai"))
    assert plan.unmatched == ["openai/gpt-old", "openai/mine"]
    assert "openai/gpt-old" not in by_pattern(plan.new)
    plan = synced([gone, kept], PACKAGE, options("openai", deprecate_unmatched=True))
    assert [rate.pattern for rate in plan.new if rate.deprecated] == ["openai/gpt-old"]
    back = replace(imported("openai/gpt-a", ("1", "2")), deprecated=True)
    assert not by_pattern(synced([back], PACKAGE, options()).new)["openai/gpt-a"].deprecated
    by_hand = replace(back, source="operator")
    assert "openai/gpt-a" not in by_pattern(
        [rate for rate in synced([by_hand], PACKAGE, options()).new if not rate.deprecated]
    )


def test_a_dry_run_reports_the_same_changes() -> None:
    stored = [imported("openai/gpt-a", ("2", "2")), imported("openai/gone", ("1", "1"))]
    report = synced(stored, PACKAGE, options("openai", deprecate_unmatched=True)).report(dry_run=True)
    assert (report.created, report.updated, report.deprecated, report.unmatched) == (1, 1, 1, ("openai/gone",))
    assert {change.change for change in report.changes} == {"created", "updated", "deprecated"}


def test_another_margin_moves_imported_rates_only() -> None:
    stored = [imported("openai/gpt-a", ("1", "2")), row("openai/mine", "1", "1", source="operator")]
    plan = with_margin(stored, Policy(Decimal(25), Decimal(1)), "did:admin")
    assert [(rate.pattern, rate.values.output, rate.change_type) for rate in plan.new] == [
        ("openai/gpt-a", "2.5000000000", "bulk_update")
    ]
    assert with_margin([replace(stored[0], values=plan.new[0].values, margin=Decimal(25))],
                       Policy(Decimal(25), Decimal(1)), "did:admin").unchanged == 1  # fmt: skip


def _check(stored: RateRow, prices: PackagePrices = PACKAGE, policy: Policy = AT_COST) -> Finding:
    (finding,) = checked([stored], Costs(prices), policy)
    return finding


@pytest.mark.parity(112)
@pytest.mark.parametrize(
    ("cost_then", "found", "needs_approval"),
    [("1", "normal", None), ("0.95", "below_cost", False), ("1.05", "drift", False), ("0.9", "below_cost", True),
     ("1.2", "drift", True)],
)  # fmt: skip
def test_a_cost_that_moved_by_a_tenth_or_more_needs_approval(
    cost_then: str, found: str, needs_approval: bool | None
) -> None:
    finding = _check(imported("openai/gpt-a", (cost_then, "2")))
    assert finding.found == found
    if needs_approval is None:
        assert finding.suggested is None
    else:
        assert finding.needs_approval is needs_approval
        assert finding.suggested == Values(input="1", output="2")


def test_a_change_of_the_credits_price_that_moves_rates_by_more_than_a_tenth_needs_approval() -> None:
    """However little the costs moved: what counts is what customers would pay."""
    finding = _check(imported("openai/gpt-a", ("0.99", "2")), policy=Policy(Decimal(0), Decimal("0.5")))
    assert finding.needs_approval
    assert finding.drift == Decimal("0.505")


@pytest.mark.parity(113)
def test_a_rate_below_cost_is_raised_to_it_and_one_set_by_hand_only_with_approval() -> None:
    cheap = row("openai/gpt-a", "0.97", "9", source="operator")
    finding = _check(cheap)
    assert (finding.found, finding.needs_approval) == ("below_cost", True)
    assert finding.suggested is not None
    assert (finding.suggested.input, finding.suggested.output) == ("1", "9")
    assert drift(finding.suggested, Values(input="1", output="9")) == 0
    lost = replace(imported("openai/gpt-a", ("1", "2")), values=Values(input="0.95", output="2"))
    assert not _check(lost).needs_approval
    assert _check(replace(cheap, values=Values(input="0.99", output="2"))).found == "normal"  # rounding is no loss


def test_what_is_out_of_service_or_unknown_is_left_alone() -> None:
    assert checked([replace(imported("openai/gpt-a", ("5", "5")), deprecated=True)], Costs(PACKAGE), AT_COST) == []
    assert _check(row("openai/gpt-none", "1", "1")).found == "no_match"


def test_the_packages_tiers_and_cache_prices_come_along() -> None:
    prices = price_package.resolve(["anthropic", "openai"], NOW)
    found = Costs(prices).of("anthropic/claude-sonnet-4-5-20250929")
    assert found is not None
    assert (found.values.cache_write, found.values.cache_write_1h) == ("0.00000375", "0.000006")
    (tier,) = found.values.tiers
    assert (tier.above, tier.input, tier.output, tier.cache_write_1h) == (200_000, "0.000006", "0.0000225", "0.000012")


def test_no_tier_of_the_package_is_cheaper_than_what_comes_before_it() -> None:
    """The bound of a hold does not need it, but a prompt that grows should not make a call cheaper."""
    prices = price_package.resolve(["anthropic", "openai", "google", "xai"], NOW)
    tiered = [rate for rate in prices.rates if rate.tiers]
    assert len(tiered) > 30
    for rate in tiered:
        before: Any = rate
        for tier in rate.tiers:
            assert Decimal(tier.input) >= Decimal(before.input), rate.pattern
            assert Decimal(tier.output) >= Decimal(before.output), rate.pattern
            before = tier


def test_the_package_knows_more_than_a_thousand_models() -> None:
    from genai_prices import data_snapshot  # noqa: PLC0415 - as above, only where its tables are wanted

    everybody = [provider.id for provider in data_snapshot.get_snapshot().providers]
    assert len(price_package.resolve(everybody, NOW).rates) > 1000
