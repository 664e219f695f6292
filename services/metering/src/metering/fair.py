"""A queue that is fair over accounts: who waits alone never waits behind somebody else's hundred."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items in order of arrival within an account; accounts take turns, one item each."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[T]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, account: str, item: T) -> None:
        """Append behind the account's others."""
        lane = self._lanes.get(account)
        if lane is None:
            self._lanes[account] = deque((item,))
        else:
            lane.append(item)
        self._size += 1

    def take(self, most: int, identities: Callable[[T], tuple[Hashable, ...]]) -> list[T]:
        """Up to `most` items, no two of which share an identity.

        Args:
            most: bound of the answer's length.
            identities: what must be unique among the items taken together, e.g. the call id; an account whose next
                item is a repeat is passed over until the next `take`, so its order stays.
        """
        taken: list[T] = []
        seen: set[Hashable] = set()
        passed: dict[str, deque[T]] = {}
        while self._lanes and len(taken) < most:
            account = next(iter(self._lanes))
            lane = self._lanes.pop(account)
            names = identities(lane[0])
            if not seen.isdisjoint(names):
                passed[account] = lane
                continue
            seen.update(names)
            taken.append(lane.popleft())
            if lane:
                self._lanes[account] = lane
        if passed:
            self._lanes = passed | self._lanes
        self._size -= len(taken)
        return taken
