"""One call as the gateway sees it, from admission to its last byte."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from contracts.dispatch import DispatchHeader
from contracts.errors import HubError
from contracts.rpc.metering import ReserveCall, SettledCall


class Stage(IntEnum):
    """How far a call has come; each has its own deadline."""

    RESERVING = 1
    DISPATCHED = 2
    ACCEPTED = 3
    ANSWERING = 4
    SETTLING = 5
    """The answer is whole; the books are awaited."""
    JOINED = 6
    """It has no row of its own: it reads the answer of the call to which its Idempotency-Key belongs."""
    OVER = 7


RUNNING: Final = frozenset((Stage.ACCEPTED, Stage.ANSWERING))
"""A router has the call, and its answer is not whole."""


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that somebody waits for. Callbacks of the bus change it, the exchange with the client reads it."""

    header: DispatchHeader
    body: bytes
    reserve: ReserveCall
    due: float
    """Monotonic time at which its stage is overdue."""
    stage: Stage = Stage.RESERVING
    router: str = ""
    next_sequence: int = 0
    chunks: list[bytes] = field(default_factory=list)
    """Answer bytes that came and were not taken yet."""
    chunk_bytes: int = 0
    answered_by: str = ""
    """Who answers, as `provider/model`."""
    held: bytes | None = None
    """The whole JSON body or the stream's tail."""
    splice_at: int | None = None
    settled: SettledCall | None = None
    error: HubError | None = None
    gone: bool = False
    """The client has left."""
    writing_since: float | None = None
    """Monotonic time since which a write waits for the client."""
    abort: Callable[[], None] | None = None
    """Drops the client's connection."""
    on_change: Callable[[], None] | None = None
    """Hears of every change."""
    joined_call_id: str = ""
    """The call whose answer is read instead of an own one."""
    joins: int = 0
    """How many calls it has joined."""
    leave: Callable[[], None] | None = None
    """Ends the reading of that answer."""
    started: float = field(default_factory=time.monotonic)

    @property
    def call_id(self) -> str:
        """Id of the call whose answer this is."""
        return self.joined_call_id or self.header.call_id

    @property
    def ready(self) -> bool:
        """Whether the answer may be finished: the tail is here, the books are closed, and nothing failed."""
        return self.held is not None and self.settled is not None and self.error is None

    @property
    def goes_on(self) -> bool:
        """Whether a router may still accept it, although its client has left."""
        return self.stage is Stage.DISPATCHED or (self.stage is Stage.RESERVING and self.header.kept)

    def misses_notice(self, latest: float, reconnected_at: float) -> bool:
        """Whether the books' word may be lost: due before `latest`, or open when the bus came back."""
        if self.settled is not None or self.error is not None:
            return False
        if self.stage is Stage.SETTLING:
            return self.due < latest
        return self.started < reconnected_at and self.stage in RUNNING

    def wake(self) -> None:
        """Something changed that the client's side must look at."""
        if self.on_change is not None:
            self.on_change()

    def fail(self, error: HubError) -> None:
        """The caller gets an error instead of (the rest of) an answer; the first one counts."""
        error.call_id = self.call_id
        self.refuse(error)

    def refuse(self, error: HubError) -> None:
        """The same before the call has a row: the error names no call, or one that it knows itself."""
        if self.error is None and self.stage is not Stage.OVER:
            self.error = error
            self.wake()

    def take(self) -> bytes:
        """All answer bytes that have come, at once."""
        chunks = self.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.chunks = []
        self.chunk_bytes = 0
        return data
