"""The protocol as built holds in every interleaving; each rule that holds it together is needed."""

from typing import Final

import pytest

from model.explore import FAULT, Protocol, explore
from model.variants import AS_BUILT, WEAKENED, Variant

SEEN: Final = {
    "one call, everything may fail": (
        "! reserve commits, reply lost, asked again",
        "! dispatch lost",
        "! frames lost",
        "client leaves, upstream is cancelled",
        "nobody accepts in time",
        "! outcome stored again, past the window",
        "a successor adopts the spool",
        "! the bus loses everything",
        "! commit: router's outcome; the answer is lost, nak",
        "! ack lost",
        "commit: stale",
        "final frame",
        "! gateway dies",
        "! router dies",
        "! metering dies",
    ),
    "one call whose hold is raised": ("hold raised", "no credit, or the call has ended"),
    "one call that another router takes over": ("another router takes the call over", "commit: new owner's outcome"),
    "one call, nobody dies but metering": ("final frame", "! the bus loses everything"),
    "usage events, the bus is wiped twice": (
        "metering finds another stream",
        "! event 1 stored, PubAck lost",
        "what is behind a gap is in the books",
    ),
    "outbox, the window passes": ("row picked, looked up, found", "! POST applied, answer lost", "! the window passes"),
}
"""Steps without which a variant would show nothing."""


@pytest.mark.parametrize("variant", AS_BUILT, ids=str)
def test_every_invariant_holds_as_built(variant: Variant) -> None:
    explored = explore(variant.protocol)
    assert explored.violation is None, str(explored.violation)
    assert explored.resting > 1
    assert set(SEEN[variant.name]) <= explored.steps, "the model has lost what it is there for"
    print(f"{variant.name}: {explored.states} states, {explored.resting} at rest")


@pytest.mark.parametrize("variant", WEAKENED, ids=str)
def test_a_weaker_protocol_is_refuted(variant: Variant) -> None:
    violation = explore(variant.protocol).violation
    assert violation is not None, "this rule is not needed, or the model does not see what it prevents"
    assert violation.what.startswith(variant.breaks), str(violation)
    print(f"{variant.name}: {violation}")


def _counter(*, stuck: bool = False) -> Protocol[int]:
    """From 0 to 3, one at a time or two; 2 is forbidden at rest, 9 always."""
    ways = {0: (("one", 1), ("two", 2)), 1: (("one", 2), (f"{FAULT}skip", 9)), 2: (() if stuck else (("one", 3),))}
    return Protocol(
        0,
        lambda state: ways.get(state, ()),
        lambda state: "nine" if state == 9 else None,
        lambda state: "rests at two" if state == 2 else None,
    )


def test_the_search_finds_the_shortest_way_to_a_violation() -> None:
    found = explore(_counter()).violation
    assert found is not None
    assert (found.what, found.schedule) == ("nine", ("one", "! skip"))
    found = explore(_counter(stuck=True)).violation
    assert found is not None
    assert (found.what, found.schedule) == ("rests at two", ("two",))


def test_a_state_that_only_a_fault_leaves_is_at_rest() -> None:
    steps = {0: (("go", 1),), 1: ((f"{FAULT}fail", 2),)}
    explored = explore(Protocol(0, lambda state: steps.get(state, ()), lambda _: None, lambda _: None))
    assert (explored.states, explored.resting) == (3, 2)


def test_a_model_without_an_end_is_refused() -> None:
    endless = Protocol(0, lambda state: [("on", state + 1)], lambda _: None, lambda _: None)
    with pytest.raises(RuntimeError, match="100 states"):
        explore(endless, states_max=100)
