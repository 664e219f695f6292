"""Order of candidates by weight and health."""

from collections import Counter

import pytest

from contracts.errors import ErrorCode, HubError
from contracts.usage import Candidate, Rates
from provider_router.catalog.providers import Provider
from provider_router.routing.circuit import Routing
from provider_router.routing.health import Health

NOW = 50.0
LIMITED = HubError(ErrorCode.UPSTREAM_RATE_LIMITED, "", retry_after_s=20)
DOWN = HubError(ErrorCode.UPSTREAM_TIMEOUT, "")
POOL = [Candidate(name, "m", Rates()) for name in ("a", "b", "c")]


def providers(**weights: int) -> dict[str, Provider]:
    return {name: Provider(name, "openai", "https://x", None, ("m",), weight) for name, weight in weights.items()}


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.provider for candidate in candidates]


@pytest.fixture
def routing() -> Routing:
    return Routing(providers(a=100, b=100, c=100), attempts_max=3)


def test_candidates_take_turns(routing: Routing) -> None:
    assert Counter(names(routing.order(POOL, NOW))[0] for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_weights_decide_the_shares() -> None:
    routing = Routing(providers(a=300, b=100), attempts_max=3)
    assert Counter(names(routing.order(POOL[:2], NOW))[0] for _ in range(40)) == {"a": 30, "b": 10}


def test_a_provider_that_cools_down_is_left_out(routing: Routing) -> None:
    routing.failed("b", LIMITED, NOW)
    assert all(sorted(names(routing.order(POOL, NOW + 19))) == ["a", "c"] for _ in range(5))


def test_when_all_cool_down_the_one_that_is_free_soonest_is_asked_first(routing: Routing) -> None:
    for name, seconds in (("a", 60), ("b", 20), ("c", 40)):
        routing.failed(name, HubError(ErrorCode.UPSTREAM_RATE_LIMITED, "", retry_after_s=seconds), NOW)
    assert names(routing.order(POOL, NOW + 1)) == ["b", "c", "a"]


def test_a_pinned_provider_is_asked_even_while_it_cools_down(routing: Routing) -> None:
    routing.failed("a", LIMITED, NOW)
    assert names(routing.order(POOL[:1], NOW)) == ["a"]


def test_after_a_cool_down_one_call_probes_and_success_brings_the_share_back(routing: Routing) -> None:
    routing.failed("a", LIMITED, NOW)
    later = NOW + 20
    first = Counter(names(routing.order(POOL, later))[0] for _ in range(30))
    assert first["a"] == 1
    routing.succeeded("a", later + 1)
    assert Counter(names(routing.order(POOL, later + 1))[0] for _ in range(30))["a"] == 10


def test_no_call_is_given_more_candidates_than_attempts_are_allowed() -> None:
    routing = Routing(providers(a=1, b=1, c=1), attempts_max=2)
    assert len(routing.order(POOL, NOW)) == 2


def test_a_candidate_that_is_not_configured_here_is_left_out_while_there_are_others() -> None:
    routing = Routing(providers(a=1, b=1), attempts_max=3)
    assert sorted(names(routing.order(POOL, NOW))) == ["a", "b"]
    assert names(Routing({}, attempts_max=3).order(POOL, NOW)) != []


def test_others_hear_of_cool_downs_and_their_end_and_of_nothing_else() -> None:
    heard: list[tuple[str, bool]] = []
    routing = Routing(providers(a=1, b=1), 3, lambda name, health: heard.append((name, health.opened > 0)))
    routing.succeeded("a", NOW)
    routing.failed("a", DOWN, NOW)
    routing.failed("a", DOWN, NOW)
    assert heard == []
    routing.failed("a", DOWN, NOW)
    routing.failed("a", DOWN, NOW)
    routing.succeeded("a", NOW + 40)
    assert heard == [("a", True), ("a", False)]


def test_a_cool_down_learned_from_another_router_counts_and_is_not_passed_on() -> None:
    heard: list[str] = []
    routing = Routing(providers(a=1, b=1), 3, lambda name, _: heard.append(name))
    routing.learned("a", Health(opened=1, until=NOW + 10))
    assert names(routing.order(POOL[:2], NOW)) == ["b"]
    assert heard == []
