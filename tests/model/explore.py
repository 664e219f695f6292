"""Breadth-first search over all states of a protocol: what is violated, and the shortest way there."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

S = TypeVar("S", bound=Hashable)
Steps = Iterable[tuple[str, S]]
FAULT: Final = "! "
"""Begins the name of a step that need not happen: a state from which only such steps lead on is at rest."""


@dataclass(frozen=True)
class Protocol(Generic[S]):
    """States and the steps between them; the two checks answer with the violated invariant, or None."""

    initial: S
    steps: Callable[[S], Steps[S]]
    safety: Callable[[S], str | None]
    """Of every state."""
    at_rest: Callable[[S], str | None]
    """Of states that nothing but a fault changes."""


@dataclass(frozen=True)
class Violation:
    """What is wrong, and the shortest schedule that leads to it."""

    what: str
    schedule: tuple[str, ...]

    def __str__(self) -> str:
        """One step a line."""
        return "\n".join((self.what, *(f"  {number:2} {step}" for number, step in enumerate(self.schedule, 1))))


@dataclass(frozen=True)
class Explored:
    """What a search saw."""

    states: int
    resting: int
    steps: frozenset[str]
    """Names of the steps taken anywhere."""
    violation: Violation | None


def explore(protocol: Protocol[S], *, states_max: int = 1_000_000) -> Explored:
    """Search until a violation or the end.

    Raises:
        RuntimeError: more states than `states_max`: the model is not finite, or far larger than meant.
    """
    came_from: dict[S, tuple[S, str] | None] = {protocol.initial: None}
    waiting = deque((protocol.initial,))
    taken: set[str] = set()
    resting = 0
    while waiting:
        state = waiting.popleft()
        wrong = protocol.safety(state)
        at_rest = True
        if wrong is None:
            for name, after in protocol.steps(state):
                if after == state:
                    continue
                taken.add(name)
                at_rest = at_rest and name.startswith(FAULT)
                if after not in came_from:
                    came_from[after] = (state, name)
                    waiting.append(after)
            if at_rest:
                resting += 1
                wrong = protocol.at_rest(state)
        if wrong is not None:
            found = Violation(wrong, _way_to(state, came_from))
            return Explored(len(came_from), resting, frozenset(taken), found)
        if len(came_from) > states_max:
            raise RuntimeError(f"more than {states_max} states")
    return Explored(len(came_from), resting, frozenset(taken), None)


def _way_to(state: S, came_from: dict[S, tuple[S, str] | None]) -> tuple[str, ...]:
    names: list[str] = []
    before = came_from[state]
    while before is not None:
        state, name = before
        names.append(name)
        before = came_from[state]
    return tuple(reversed(names))
