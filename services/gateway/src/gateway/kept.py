"""Kept answers: what a router put into the stream FRAMES, read from its beginning while it still grows.

Frames that are stored are read by subject, those to come are heard on it; their numbers join the two without a gap or
a repeat. All who read one answer here share it. It is complete when the books have closed its call, which metering is
asked for: its notice goes to the gateway that dispatched the call, and that one may be dead.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import frames, streams, subjects
from contracts.errors import ErrorCode, HubError
from contracts.events import CallState
from contracts.frames import FrameKind
from contracts.rpc.metering import SettledCall
from gateway.books import Outcomes, closed
from gateway.failures import as_error, not_booked
from runtime.bus import Bus
from runtime.stored import StoredMessages

_log = structlog.get_logger("kept")
_HEAD: Final = msgspec.json.Decoder(frames.Head)
_FAILURE: Final = msgspec.json.Decoder(frames.Failure)
SILENT_S: Final = 1.0
"""After so long without a frame the stream is read again, and the books are asked."""
GRACE_S: Final = 0.3
"""The last frame may be stored so long after the books have closed the call."""
_ASK_FIRST_S: Final = 0.01
_ASK_LAST_S: Final = 0.5

Changed = Callable[[], None]


@dataclass(slots=True, eq=False)
class KeptAnswer:
    """One answer, as far as it is known here; it only ever grows."""

    call_id: str
    head: frames.Head | None = None
    chunks: list[bytes] = field(default_factory=list)
    end: tuple[bytes, int | None] | None = None
    """The held bytes and where credits go into them."""
    failure: frames.Failure | None = None
    """The router's word that the call has failed."""
    failure_heard: bool = False
    """It came while somebody waited for it here, and not from what was stored before."""
    settled: SettledCall | None = None
    """The books have closed the call."""
    lost: HubError | None = None
    """Why nothing more will come."""
    missing: bool = False
    """The call has ended and not all of its answer is kept."""
    begun: bool = False
    """What is stored has been read for the first time."""
    next_frame: int = 0
    torn: bool = False
    """Frames before those that are stored are gone."""
    readers: list[Changed] = field(default_factory=list)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    """The answer is whole, or a frame is missing."""
    task: asyncio.Task[None] | None = None

    @property
    def whole(self) -> bool:
        """Whether its last frame is here."""
        return self.end is not None or self.failure is not None

    @property
    def delivered(self) -> bool:
        """Whether all of it may go out: the last frame is here, and the call succeeded in the books."""
        return self.end is not None and self.settled is not None and self.settled.state == CallState.SUCCESS

    @property
    def answered_by(self) -> str:
        """Who answers, as `provider/model`."""
        return "" if self.head is None else f"{self.head.provider}/{self.head.model}"

    @property
    def error(self) -> HubError | None:
        """What the caller gets instead of (the rest of) it."""
        error = self.lost
        if self.failure is not None:
            error = as_error(self.failure)
        if error is not None:
            error.call_id = self.call_id
        return error

    def tell(self) -> None:
        """Something changed."""
        for changed in list(self.readers):
            changed()

    def take(self, message: bytes, *, stored: bool) -> None:
        """Frames of the call, stored or heard."""
        for kind, _, sequence, payload in frames.unpack(message):
            if sequence < self.next_frame:
                continue
            if sequence > self.next_frame:
                self.torn = self.torn or stored
                self.stirred.set()
                break
            self.next_frame += 1
            self._add(kind, payload)
        if self.whole:
            self.stirred.set()
        self.tell()

    def _add(self, kind: FrameKind, payload: bytes) -> None:
        match kind:
            case FrameKind.HEAD:
                self.head = _HEAD.decode(payload)
            case FrameKind.DATA:
                self.chunks.append(payload)
            case FrameKind.END:
                self.end = frames.read_end(payload)
            case FrameKind.ERROR:
                self.failure = _FAILURE.decode(payload)
                self.failure_heard = self.begun
            case FrameKind.ACCEPTED:
                pass


class KeptAnswers:
    """The answers that are read on this gateway.

    Args:
        bus: the gateway's.
        process: its process id.
        outcomes: asks the books.
        settle_s: longest wait for the books behind the last frame.
        call_s: longest life of a call.
    """

    def __init__(self, bus: Bus, process: str, outcomes: Outcomes, settle_s: float, call_s: float) -> None:
        self._bus = bus
        self._stored = StoredMessages(bus, streams.FRAMES.name, f"{subjects.inbox_prefix('gateway', process)}.stored")
        self._outcomes = outcomes
        self._settle_s = settle_s
        self.longest_s = call_s + settle_s
        """After that no answer is waited for any more."""
        self._answers: dict[str, KeptAnswer] = {}

    async def start(self) -> None:
        """Listen for what the stream answers."""
        await self._stored.start()

    def follow(self, call_id: str, changed: Changed) -> KeptAnswer:
        """Read a call's answer until `leave`; `changed` runs after each change, inside the read of the bus."""
        answer = self._answers.get(call_id)
        if answer is None or answer.lost is not None:
            answer = self._answers[call_id] = KeptAnswer(call_id)
            answer.task = asyncio.get_running_loop().create_task(self._read(answer), name=f"kept {call_id}")
            answer.task.add_done_callback(partial(_ended, answer))
        answer.readers.append(changed)
        return answer

    def leave(self, answer: KeptAnswer, changed: Changed) -> None:
        """Read no more; the last one who leaves ends it."""
        if changed in answer.readers:
            answer.readers.remove(changed)
        if answer.readers:
            return
        if answer.task is not None:
            answer.task.cancel()
        if self._answers.get(answer.call_id) is answer:
            del self._answers[answer.call_id]

    async def _read(self, answer: KeptAnswer) -> None:
        """From the first frame to the books' word, or to the reason why there is none."""

        def heard(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
            answer.take(payload, stored=False)

        try:
            listening = await self._bus.listen(subjects.frames(answer.call_id), heard)
            try:
                async with asyncio.timeout(self.longest_s):
                    if not await self._gather(answer):
                        answer.missing = True
                        answer.lost = _not_kept(answer.call_id)
                    elif not await self._await_books(answer):
                        answer.lost = not_booked(answer.call_id)
            finally:
                await self._bus.unlisten(listening)
        except TimeoutError:
            answer.lost = HubError(ErrorCode.UPSTREAM_TIMEOUT, "The answer did not end in time.")
        except NatsError as error:
            _log.warning("answer not followed", call_id=answer.call_id, error=type(error).__name__)
            answer.lost = HubError(ErrorCode.SERVICE_UNAVAILABLE, "The answer cannot be read right now; try again.")
        if answer.settled is not None and answer.settled.state != CallState.SUCCESS and answer.failure is None:
            answer.lost = HubError(ErrorCode.STALE, "The call was closed before its answer was complete; try again.")
        answer.tell()

    async def _gather(self, answer: KeptAnswer) -> bool:
        """Read until the answer is whole; False when the call has ended and not all of its answer is kept."""
        position = 0
        while True:
            answer.stirred.clear()
            stored = await self._stored.read(subjects.frames(answer.call_id), position)
            for sequence, message in stored or ():
                position = sequence
                answer.take(message, stored=True)
            answer.begun = answer.begun or stored is not None
            answer.tell()
            if answer.whole:
                return True
            if answer.torn:
                return False
            if answer.settled is not None and stored is not None:
                return False
            await self._ask_books(answer)
            await _silence(answer, SILENT_S if answer.settled is None else GRACE_S)

    async def _await_books(self, answer: KeptAnswer) -> bool:
        """Ask until the call is closed; False when that takes too long."""
        until = time.monotonic() + self._settle_s
        pause_s = _ASK_FIRST_S
        while True:
            if await self._ask_books(answer):
                return True
            if time.monotonic() > until:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(_ASK_LAST_S, pause_s * 2)

    async def _ask_books(self, answer: KeptAnswer) -> bool:
        if answer.settled is None:
            answer.settled = (await closed(self._outcomes, [answer.call_id])).get(answer.call_id)
        return answer.settled is not None


async def _silence(answer: KeptAnswer, for_s: float) -> None:
    """Wait for the last frame, for a missing one, or until no frame has come for so long."""
    while True:
        before = answer.next_frame
        try:
            async with asyncio.timeout(for_s):
                await answer.stirred.wait()
        except TimeoutError:
            if answer.next_frame != before:
                continue
        return


def _ended(answer: KeptAnswer, task: asyncio.Task[None]) -> None:
    """The edge of a reading: a bug ends it for its readers, with an error, and is logged."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    _log.error("answer not followed", call_id=answer.call_id, exc_info=error)
    answer.lost = HubError(ErrorCode.INTERNAL_ERROR, "The hub failed to read this answer; try again.")
    answer.tell()


def _not_kept(call_id: str) -> HubError:
    return HubError(
        ErrorCode.NOT_FOUND,
        f"The answer of call {call_id} is not kept (any more); GET /api/v2/calls/{call_id} tells what became of it.",
    )
