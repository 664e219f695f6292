"""What successes and failures make of a provider's health."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode, HubError
from provider_router.routing import health as rules
from provider_router.routing.health import COOL_DOWN_MAX_S, WELL, Condition, Health
from provider_router.routing.shared import decoded, encoded

NOW = 1000.0
DOWN = HubError(ErrorCode.UPSTREAM_UNAVAILABLE, "")


def limited(retry_after_s: float | None = None) -> HubError:
    return HubError(ErrorCode.UPSTREAM_RATE_LIMITED, "", retry_after_s=retry_after_s)


def after(*errors: HubError, now: float = NOW, health: Health = WELL) -> Health:
    for error in errors:
        health = rules.after_failure(health, error, now)
    return health


@pytest.mark.parametrize(
    ("retry_after_s", "seconds"),
    [(None, 90), (7.0, 7), (0.0, 1), (-5.0, 1), (3600.0, 180), (float("inf"), 180), (float("nan"), 1)],
)
def test_a_429_cools_down_as_long_as_the_provider_asks_within_bounds(
    retry_after_s: float | None, seconds: float
) -> None:
    health = after(limited(retry_after_s))
    assert rules.condition(health, NOW + seconds - 0.01) is Condition.COOLING
    assert rules.condition(health, NOW + seconds) is Condition.PROBE


def test_a_shorter_retry_after_does_not_end_a_longer_cool_down() -> None:
    assert after(limited(120), limited(1)).until == NOW + 120


@pytest.mark.parametrize(
    "code", [ErrorCode.UPSTREAM_UNAVAILABLE, ErrorCode.UPSTREAM_TIMEOUT, ErrorCode.UPSTREAM_BROKEN]
)
def test_the_third_failure_in_a_row_opens_the_circuit(code: ErrorCode) -> None:
    error = HubError(code, "")
    assert rules.condition(after(error, error), NOW) is Condition.WELL
    assert rules.condition(after(error, error, error), NOW) is Condition.COOLING


def test_a_success_between_failures_starts_the_count_anew() -> None:
    health = rules.after_success(after(DOWN, DOWN), NOW)
    assert health == WELL
    assert rules.condition(after(DOWN, DOWN, health=health), NOW) is Condition.WELL


def test_cool_downs_grow_while_probes_fail() -> None:
    health, now, lengths = after(DOWN, DOWN), NOW, []
    for _ in range(5):
        health = after(DOWN, now=now, health=rules.probing(health, now))
        lengths.append(health.until - now)
        now = health.until
    assert lengths == [30, 60, 120, 180, 180]


def test_one_outage_seen_by_many_calls_is_one_cool_down() -> None:
    assert after(*[DOWN] * 50).until == after(*[DOWN] * 3).until


def test_an_answer_that_was_under_way_does_not_end_a_cool_down() -> None:
    health = rules.after_success(after(limited()), NOW + 1)
    assert rules.condition(health, NOW + 1) is Condition.COOLING


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    health = after(limited())
    assert rules.after_success(rules.probing(health, health.until), health.until + 1) == WELL


def test_one_call_at_a_time_is_the_probe() -> None:
    health = after(limited())
    probed = rules.probing(health, health.until)
    assert rules.condition(probed, health.until + 1) is Condition.COOLING
    assert rules.condition(probed, health.until + rules.PROBE_S) is Condition.PROBE


def test_a_rejected_request_shows_that_the_provider_is_there() -> None:
    assert after(DOWN, DOWN, HubError(ErrorCode.UPSTREAM_REJECTED, "")) == WELL


@pytest.mark.parametrize(
    "code", [ErrorCode.UNSUPPORTED_FEATURE, ErrorCode.CREDIT_EXHAUSTED, ErrorCode.CLIENT_CANCELLED]
)
def test_what_is_nobodys_fault_upstream_changes_nothing(code: ErrorCode) -> None:
    before = after(DOWN, DOWN)
    assert rules.after_failure(before, HubError(code, ""), NOW) == before


EVENTS = st.lists(st.tuples(st.sampled_from(["ok", "down", "limited", "rejected"]), st.floats(0, 400)), max_size=30)


@given(EVENTS)
def test_no_history_keeps_a_provider_out_for_longer_than_the_bound(events: list[tuple[str, float]]) -> None:
    health, now = WELL, NOW
    for event, seconds in events:
        now += seconds
        if event == "ok":
            health = rules.after_success(health, now)
        elif event == "rejected":
            health = after(HubError(ErrorCode.UPSTREAM_REJECTED, ""), now=now, health=health)
        else:
            health = after(DOWN if event == "down" else limited(seconds), now=now, health=health)
        assert health.until <= now + COOL_DOWN_MAX_S
    assert rules.condition(health, now + COOL_DOWN_MAX_S) is not Condition.COOLING


@given(st.integers(1, 9), st.floats(-100, 180), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_cool_down_means_the_same_on_another_clock(opened: int, left: float, here: float, there: float) -> None:
    learned = decoded(encoded(Health(3, opened, here + left), here, 1.8e9), there, 1.8e9)
    assert learned.opened == opened
    assert learned.until - there == pytest.approx(left, abs=0.01)


def test_no_clock_that_is_wrong_keeps_a_provider_out_for_long() -> None:
    learned = decoded(encoded(Health(0, 1, NOW + 90), NOW, 1.8e9 + 86_400), NOW, 1.8e9)
    assert learned.until == NOW + COOL_DOWN_MAX_S


def test_well_stays_well_on_the_way() -> None:
    assert decoded(encoded(WELL, NOW, 1.8e9), 5.0, 1.8e9) == WELL
