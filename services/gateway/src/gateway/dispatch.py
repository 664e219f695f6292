"""One call → one router; frames back, in order; the books' word at the end."""

import asyncio
import itertools
import time
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import dispatch, events, frames, subjects
from contracts.errors import ErrorCode, HubError
from contracts.frames import FrameKind
from contracts.rpc import metering
from gateway.failures import as_error, lost, not_booked
from gateway.open_call import RUNNING, OpenCall, Stage
from gateway.outgoing import publish_given_up, publish_requested, send_cancel, send_parts
from gateway.routers_heard import RoutersHeard
from gateway.settings import Settings
from runtime import failpoints
from runtime.bus import Bus, no_responders

_log = structlog.get_logger("dispatch")
_DATA: Final = FrameKind.DATA
_ACCEPTED: Final = msgspec.json.Decoder(frames.Accepted)
_HEAD: Final = msgspec.json.Decoder(frames.Head)
_FAILURE: Final = msgspec.json.Decoder(frames.Failure)
_SETTLED: Final = msgspec.json.Decoder(metering.SettledBatch)
SWEEP_S: Final = 0.1
BLOCKED_S: Final = 30.0
"""A client that takes no byte for this long is treated as gone."""
LAST_WORD_S: Final = 0.5
"""A failed call's error frame may come this long after the books' notice: they travel on different connections."""
TAIL_S: Final = 2.0
"""A paid answer's tail, sent before the fact, is lost if it has not come so long after the books' notice."""
UNREAD_BYTES_MAX: Final = 8 * 2**20
"""Answer bytes that wait for one slow client; above this it is treated as gone."""


class Dispatcher:
    """The open calls of this gateway, found by their number (frames) and by their id (settled notices)."""

    def __init__(self, bus: Bus, process: str, settings: Settings) -> None:
        self._bus = bus
        self._process = process
        self._settings = settings
        self._numbers = itertools.count(1)
        self._by_number: dict[int, OpenCall] = {}
        self._by_id: dict[str, OpenCall] = {}
        self._routers_heard = RoutersHeard()
        self._reconnected_at = 0.0
        self._dispatch_subject = subjects.dispatch()

    async def start(self) -> None:
        """Listen on everything that is addressed to this process."""
        self._bus.after_reconnect(self._reconnected)
        await self._bus.listen(subjects.inbox_frames(self._process), self._on_frames)
        await self._bus.listen(subjects.inbox_settled("gateway", self._process), self._on_settled)
        await self._bus.listen(subjects.inbox_alive(self._process), self._on_alive)
        prefix = subjects.inbox_prefix("gateway", self._process)
        await self._bus.listen(f"{prefix}.undispatched.*", self._on_undispatched)

    def __len__(self) -> int:
        return len(self._by_number)

    def next_number(self) -> int:
        """A number for a new call; frames carry 32 bits of it."""
        return next(self._numbers) & 0xFFFF_FFFF

    def open(self, call: OpenCall) -> None:
        """Track a call from now on."""
        self._by_number[call.header.number] = call
        self._by_id[call.header.call_id] = call

    def close(self, call: OpenCall) -> None:
        """The caller has its answer, or has left; frames that still come are dropped."""
        if call.gone and call.error is None and call.goes_on:
            return  # the router that accepts is told then; until one does, a failure must be told to the books
        if call.leave is not None:
            call.leave()
        call.stage = Stage.OVER
        self._by_number.pop(call.header.number, None)
        self._by_id.pop(call.header.call_id, None)

    def dispatch(self, call: OpenCall) -> None:
        """The call's hold is reserved: hand it to one router, and tell the world that it was requested."""
        if (call.gone and not call.header.kept) or call.stage is not Stage.RESERVING:
            publish_given_up(
                self._bus, call.header, ErrorCode.CLIENT_CANCELLED, "The client left before the call was dispatched."
            )
            return
        call.stage = Stage.DISPATCHED
        call.due = time.monotonic() + self._settings.accept_s
        header, body = call.header, call.body
        if header.more_parts:
            body = body[: dispatch.PART_BYTES]
        try:
            failpoints.hit("gateway.before_dispatch")
            self._bus.send(
                self._dispatch_subject,
                dispatch.pack(header, body),
                reply=subjects.inbox_undispatched(self._process, header.number),
            )
            publish_requested(self._bus, call.reserve)
            failpoints.hit_written("gateway.after_dispatch")
        except NatsError:
            self._undispatched(call)

    def cancel(self, call: OpenCall, reason: ErrorCode = ErrorCode.CLIENT_CANCELLED) -> None:
        """Nobody waits for the call any more: its router closes upstream."""
        if not call.router or call.settled is not None:
            return
        try:
            send_cancel(self._bus, self._process, call, reason)
        except NatsError as error:
            _log.warning("cancel not sent", call_id=call.call_id, error=type(error).__name__)

    async def run(self) -> None:
        """Sweep for overdue calls, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(time.monotonic())

    async def drain(self, within_s: float) -> None:
        """Wait for the open calls."""
        until = time.monotonic() + within_s
        while self._by_number and time.monotonic() < until:  # noqa: ASYNC110 - many events, one condition
            await asyncio.sleep(0.02)

    def sweep(self, now: float) -> None:
        """End calls whose stage has lasted too long or whose router has fallen silent."""
        for call in list(self._by_number.values()):
            if call.writing_since is not None and now - call.writing_since > BLOCKED_S:
                self._blocked(call)
            if call.error is not None:
                if call.gone:
                    self.close(call)
                continue
            if call.due < now:
                self._overdue(call)
            elif call.stage in RUNNING and self._routers_heard.is_silent(
                call.router, now, connected=self._bus.is_connected
            ):
                call.fail(lost(call.call_id, "The part of the hub that served this call is gone"))

    def _overdue(self, call: OpenCall) -> None:
        match call.stage:
            case Stage.DISPATCHED:
                self._undispatched(call)
            case Stage.SETTLING:
                call.fail(not_booked(call.call_id))
            case Stage.RESERVING:
                call.fail(
                    HubError(ErrorCode.SERVICE_UNAVAILABLE, "Credit cannot be reserved right now; try again shortly.")
                )
            case _:
                call.fail(HubError(ErrorCode.UPSTREAM_TIMEOUT, "The provider did not answer in time; try again."))
                self.cancel(call, ErrorCode.UPSTREAM_TIMEOUT)

    def _on_frames(self, _subject: bytes, _reply: bytes, message: bytes, _headers: bytes | None) -> None:
        now, by_number = time.monotonic(), self._by_number
        for kind, number, sequence, payload in frames.unpack(message):
            call = by_number.get(number)
            if call is None or call.error is not None:
                continue
            if sequence != call.next_sequence:
                self._gap(call)
                continue
            call.next_sequence = sequence + 1
            if kind is _DATA:
                self._take_data(call, payload, now)
            else:
                self._take(call, kind, payload, now)

    def _take_data(self, call: OpenCall, payload: bytes, now: float) -> None:
        call.chunks.append(payload)
        call.chunk_bytes += len(payload)
        call.due = now + self._settings.idle_s
        if call.chunk_bytes > UNREAD_BYTES_MAX and call.header.stream:
            if call.header.kept:
                self._blocked(call)
            else:
                self.left(call)
        call.wake()

    def _take(self, call: OpenCall, kind: FrameKind, payload: bytes, now: float) -> None:
        if kind is FrameKind.ACCEPTED:
            call.router = _ACCEPTED.decode(payload).router
            call.stage = Stage.ACCEPTED
            call.due = now + self._settings.first_byte_s
            self._routers_heard[call.router] = now
            if call.gone and not call.header.kept:
                self.cancel(call)
            elif call.header.more_parts:
                self._send_parts(call)
            if call.gone:
                self.close(call)
        elif kind is FrameKind.HEAD:
            head = _HEAD.decode(payload)
            call.answered_by = f"{head.provider}/{head.model}"
            call.stage = Stage.ANSWERING
            call.due = now + self._settings.idle_s
        elif kind is FrameKind.END:
            call.held, call.splice_at = frames.read_end(payload)
            call.stage = Stage.SETTLING
            call.due = now + self._settings.settle_s
            if call.settled is not None or call.chunks:
                call.wake()
        else:
            call.fail(as_error(_FAILURE.decode(payload)))

    def _on_settled(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        for settled in _SETTLED.decode(payload).calls:
            self.settled(settled)

    def settled(self, settled: metering.SettledCall) -> None:
        """The books' word on a call, by their notice or because they were asked."""
        call = self._by_id.get(settled.call_id)
        if call is None:
            return
        if settled.state != events.CallState.SUCCESS:
            # Its router's word, with the provider's own error, may still be on its way: that one counts.
            stale = HubError(ErrorCode.STALE, "The call was closed before its answer was complete; try again.")
            wait_s = LAST_WORD_S if call.held is None else 0.0
            asyncio.get_running_loop().call_later(wait_s, call.fail, stale)
            return
        call.settled = settled
        if call.held is not None:
            call.wake()
        else:
            asyncio.get_running_loop().call_later(TAIL_S, self._tail_lost, call)

    def _tail_lost(self, call: OpenCall) -> None:
        """Paid, and the rest of its answer did not reach us: there was no bus to carry it."""
        if call.held is None and call.error is None and call.stage is not Stage.OVER:
            _log.warning("end of an answer lost", call_id=call.call_id)
            call.fail(lost(call.call_id, "The end of the answer was lost inside the hub"))

    def _reconnected(self) -> None:
        self._reconnected_at = time.monotonic()

    def unsettled(self, for_s: float) -> list[str]:
        """Calls whose answer is complete for so long, at most a quarter of their wait, without a word of the books.

        And those that were open when the bus was away: tail and notice may both have been lost.
        """
        settle_s = self._settings.settle_s
        latest = time.monotonic() + settle_s - min(for_s, settle_s / 4)
        calls = self._by_number.values()
        return [call.header.call_id for call in calls if call.misses_notice(latest, self._reconnected_at)]

    def _on_alive(self, _subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        self._routers_heard.beat(payload.decode(), time.monotonic())
        self._bus.send(reply.decode(), b"")

    def _on_undispatched(self, subject: bytes, _reply: bytes, _payload: bytes, headers: bytes | None) -> None:
        call = self._by_number.get(int(subject.rpartition(b".")[2]))
        if call is not None and no_responders(headers) and call.stage is Stage.DISPATCHED:
            self._undispatched(call)

    def left(self, call: OpenCall) -> None:
        """The client has gone, or reads too slowly to count as present. A call whose answer is kept goes on."""
        if call.gone or call.stage is Stage.OVER:
            return
        call.gone = True
        if not call.header.kept:
            self.cancel(call)
        call.wake()

    def _blocked(self, call: OpenCall) -> None:
        _log.info("client takes no bytes", call_id=call.call_id)
        self.left(call)
        if call.abort is not None:
            call.abort()

    def _undispatched(self, call: OpenCall) -> None:
        message = "No provider-router took the call; try again shortly."
        publish_given_up(self._bus, call.header, ErrorCode.ROUTER_UNAVAILABLE, message)
        call.fail(HubError(ErrorCode.ROUTER_UNAVAILABLE, message, retry_after_s=1))
        if call.gone:
            self.close(call)

    def _gap(self, call: OpenCall) -> None:
        """A frame is missing or came twice: never splice over it."""
        _log.error("frames out of order", call_id=call.call_id, expected=call.next_sequence)
        call.fail(lost(call.call_id, "Part of the answer was lost inside the hub"))
        if not call.header.kept:  # there all of it can still be read
            self.cancel(call, ErrorCode.UPSTREAM_BROKEN)

    def _send_parts(self, call: OpenCall) -> None:
        try:
            send_parts(self._bus, call)
        except NatsError as error:
            _log.warning("body parts not sent", call_id=call.call_id, error=type(error).__name__)
            call.fail(HubError(ErrorCode.OVERLOADED, "The hub is too busy for a body of this size; try again shortly."))
            self.cancel(call, ErrorCode.OVERLOADED)
