"""Turns among the members of a pool."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from provider_router.routing.candidates import RoundRobin, by_name

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=2)


@given(WEIGHTS, st.integers(1, 4))
def test_turns_follow_the_weights_exactly(weights: dict[str, int], rounds: int) -> None:
    turns = RoundRobin()
    first = Counter(turns.ordered(list(weights), weights.__getitem__)[0] for _ in range(rounds * sum(weights.values())))
    assert first == {name: rounds * weight for name, weight in weights.items()}


@given(WEIGHTS)
def test_every_member_is_in_every_order_once(weights: dict[str, int]) -> None:
    turns = RoundRobin()
    for _ in range(5):
        assert sorted(turns.ordered(list(weights), weights.__getitem__)) == sorted(weights)


def test_shares_come_without_bursts() -> None:
    turns = RoundRobin()
    weights = {"a": 5, "b": 1, "c": 1}
    assert "".join(turns.ordered(list(weights), weights.__getitem__)[0] for _ in range(7)) == "aabacaa"


def test_weight_nought_comes_last_but_is_there() -> None:
    turns = RoundRobin()
    weights = {"a": 0, "b": 1, "c": 1}
    orders = [turns.ordered(list(weights), weights.__getitem__) for _ in range(10)]
    assert all(order[-1] == "a" for order in orders)


def test_weights_that_are_all_nought_share_evenly() -> None:
    turns = RoundRobin()
    first = Counter(turns.ordered(["a", "b"], lambda _: 0)[0] for _ in range(10))
    assert first == {"a": 5, "b": 5}


def test_pools_do_not_disturb_each_other() -> None:
    turns = RoundRobin()
    one = [turns.ordered(["a", "b"], lambda _: 1)[0]]
    turns.ordered(["a", "c"], lambda _: 1)
    one.append(turns.ordered(["b", "a"], lambda _: 1)[0])
    assert sorted(one) == ["a", "b"]


def test_candidates_of_one_provider_keep_their_order() -> None:
    assert by_name(["y", "x"], ["x1", "y1", "x2", "z1"], lambda text: text[0]) == ["y1", "x1", "x2"]
