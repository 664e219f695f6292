"""The order in which candidates are asked: smooth weighted round robin over those that are well."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
_POOLS_MAX: Final = 1024


class RoundRobin:
    """Smooth weighted round robin (as nginx has it), one state per pool: shares follow the weights, without bursts."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, ...], dict[str, int]] = {}

    def ordered(self, names: Sequence[str], weight: Callable[[str], int]) -> list[str]:
        """All names, the one whose turn it is first, then by how near their turn is.

        Args:
            names: the pool, each once.
            weight: share of a name, ≥ 0; 0 comes first only when all weights are 0.
        """
        if len(names) < 2:  # noqa: PLR2004 - nothing to choose
            return list(names)
        pool = tuple(sorted(names))
        current = self._pools.get(pool)
        if current is None:
            if len(self._pools) >= _POOLS_MAX:
                self._pools.clear()  # shares start anew; that pools are so many means that they change
            current = self._pools[pool] = dict.fromkeys(pool, 0)
        weights = {name: weight(name) for name in names}
        total = sum(weights.values())
        if total == 0:
            weights, total = dict.fromkeys(names, 1), len(names)
        for name in names:
            current[name] += weights[name]
        turn = sorted(names, key=lambda name: (weights[name] == 0, -current[name]))
        current[turn[0]] -= total
        return turn


def by_name(names: Sequence[str], candidates: Sequence[T], name_of: Callable[[T], str]) -> list[T]:
    """Candidates in the order of names; several of one provider stay together, in their own order."""
    place = {name: index for index, name in enumerate(names)}
    chosen = [candidate for candidate in candidates if name_of(candidate) in place]
    return sorted(chosen, key=lambda candidate: place[name_of(candidate)])
