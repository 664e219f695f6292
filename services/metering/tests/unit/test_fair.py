from hypothesis import given
from hypothesis import strategies as st

from metering.fair import FairQueue

Item = tuple[str, int]


def _filled(items: list[Item]) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for item in items:
        queue.put(item[0], item)
    return queue


def test_a_lone_account_is_served_in_the_first_turn_whatever_waits_before_it() -> None:
    queue = _filled([("hot", number) for number in range(1000)] + [("lone", 0)])
    assert ("lone", 0) in queue.take(2, lambda item: (item,))


def test_repeats_wait_for_the_next_turn() -> None:
    queue = _filled([("a", 1), ("a", 1), ("a", 2)])
    assert queue.take(10, lambda item: (item,)) == [("a", 1)]
    assert queue.take(10, lambda item: (item,)) == [("a", 1), ("a", 2)]
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5))), st.integers(1, 7))
def test_everything_comes_out_once_and_in_the_order_of_its_account(items: list[Item], most: int) -> None:
    queue = _filled(items)
    out: list[Item] = []
    while queue:
        taken = queue.take(most, lambda item: (item,))
        assert 0 < len(taken) <= most
        assert len(set(taken)) == len(taken)
        out += taken
    for account in "abc":
        assert [item for item in out if item[0] == account] == [item for item in items if item[0] == account]
