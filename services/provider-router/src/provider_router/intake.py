"""Dispatch messages in: accept a call, start its story, keep its lease, stop it when nobody waits any more."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from contracts import dispatch, events, frames, subjects
from contracts.errors import ErrorCode
from contracts.rpc import metering
from provider_router import metrics
from provider_router.call import serve
from provider_router.ending import end_early
from provider_router.frames_out import Lane
from provider_router.holds import meter
from provider_router.running import Router, RunningCall
from runtime import failpoints
from runtime.bus import OnReply, no_responders

_log = structlog.get_logger("intake")
_ENCODER: Final = msgspec.json.Encoder()
_CANCEL: Final = msgspec.json.Decoder(dispatch.Cancel)
_RENEWED: Final = msgspec.json.Decoder(metering.RenewReply)
HEARTBEAT_S: Final = 1.0
GATEWAY_SILENT_S: Final = 10.0
PARTS_S: Final = 20.0


@dataclass(slots=True)
class _Parts:
    """A body whose further parts are on their way."""

    call: RunningCall
    missing: int
    pieces: dict[int, bytes]
    since: float


@dataclass(slots=True)
class Intake:
    """The calls of this process."""

    router: Router
    calls_max: int
    lease_s: float
    unsettled_max: int
    """More outcomes than that wait for the books: nothing new is taken until half of them are settled."""
    running: dict[str, RunningCall] = field(default_factory=dict)
    accepting: bool = True
    _parts: dict[str, _Parts] = field(default_factory=dict)
    _gateways_heard: dict[str, float] = field(default_factory=dict)
    _subscription: Subscription | None = None
    _held_back: bool = False
    """Out of the queue group because of outcomes that are not settled."""

    async def start(self) -> None:
        """Listen for cancellations and parts first, then join the queue group."""
        bus, process = self.router.bus, self.router.process
        await bus.listen(subjects.cancel(process), self._on_cancel)
        await bus.listen(subjects.inbox_parts(process), self._on_part)
        await self._join()

    async def leave(self) -> None:
        """Take no new call; those that run go on."""
        self.accepting = False
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def run(self) -> None:
        """Heartbeats to gateways and lease renewal, for ever."""
        renew_every = min(5.0, self.lease_s / 4)
        renewed_at = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            metrics.RUNNING.set(len(self.running))
            metrics.UNSETTLED.set(len(self.router.outcomes.open))
            self._beat()
            self._expire_parts()
            await self._watch_unsettled()
            if time.monotonic() - renewed_at >= renew_every:
                renewed_at = time.monotonic()
                await self._renew(renew_every)

    async def _join(self) -> None:
        self._subscription = await self.router.bus.listen(
            subjects.dispatch(), self._on_dispatch, queue="provider-router"
        )

    async def _watch_unsettled(self) -> None:
        """While the bus or the books take no outcome, the next calls shall be refused before a provider is asked."""
        unsettled = len(self.router.outcomes.open)
        if not self.accepting:
            return
        if self._held_back and unsettled <= self.unsettled_max // 2:
            _log.info("new calls are taken again", unsettled=unsettled)
            self._held_back = False
            await self._join()
        elif self._subscription is not None and unsettled > self.unsettled_max:
            _log.error("too many outcomes not settled: no new calls", unsettled=unsettled)
            self._held_back = True
            subscription, self._subscription = self._subscription, None
            await subscription.unsubscribe()

    async def drain(self, within_s: float) -> None:
        """Wait for the running calls; those left after that end as failures with an outcome."""
        until = time.monotonic() + within_s
        while self.running and time.monotonic() < until:  # noqa: ASYNC110 - many events, one condition
            await asyncio.sleep(0.02)
        left = [call.task for call in self.running.values() if call.task is not None]
        for call in list(self.running.values()):
            call.stop(ErrorCode.ROUTER_LOST)
        if left:
            await asyncio.wait(left, timeout=2)

    def _on_dispatch(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        try:
            header, body = dispatch.unpack(payload)
        except dispatch.DispatchError as error:
            _log.error("dispatch message not read", error=str(error)[:200])
            return
        if header.call_id in self.running:
            _log.error("call dispatched twice", call_id=header.call_id)
            return
        failpoints.hit("provider_router.before_accept")
        lane = Lane(header.gateway, header.number, kept_as=header.call_id if header.kept else "")
        call = RunningCall(header, body, meter(header), lane)
        if len(self.running) >= self.calls_max:
            self._refuse(call)
            return
        self.running[header.call_id] = call
        accepted = _ENCODER.encode(frames.Accepted(self.router.process))
        call.frame(self.router, frames.FrameKind.ACCEPTED, accepted)
        if header.more_parts:
            self._parts[header.call_id] = _Parts(call, header.more_parts, {0: body}, time.monotonic())
        else:
            self._begin(call)

    def _begin(self, call: RunningCall) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self.running.pop(call.header.call_id, None)
            if task.cancelled():  # stopped before its first step: `serve` has said nothing
                end_early(call, self.router)

        call.task = asyncio.get_running_loop().create_task(serve(call, self.router))
        call.task.add_done_callback(ended)

    def _refuse(self, call: RunningCall) -> None:
        """More calls than this process takes: a failure with an outcome, so that the hold is released at once."""
        header = call.header
        message = "The hub takes no more calls right now; try again shortly."
        failure = frames.Failure(code=ErrorCode.OVERLOADED, message=message, retry_after_s=1)
        call.frame(self.router, frames.FrameKind.ERROR, _ENCODER.encode(failure))
        self.router.outcomes.failed(
            events.CallFailed(
                call_id=header.call_id,
                epoch=header.epoch,
                account=header.account,
                kind=header.kind,
                code=ErrorCode.OVERLOADED,
                reason=message,
                failed_at=events.now_text(),
                gateway=header.gateway,
                router=self.router.process,
                trace_id=header.trace_id,
            )
        )

    def _on_part(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        call_id, number, part = dispatch.unpack_part(payload)
        parts = self._parts.get(call_id)
        if parts is None or number in parts.pieces:
            return
        parts.pieces[number] = part
        if len(parts.pieces) > parts.missing:
            del self._parts[call_id]
            parts.call.body = b"".join(parts.pieces[index] for index in range(parts.missing + 1))
            self._begin(parts.call)

    def _expire_parts(self) -> None:
        """A body that never became whole fails its call by running it: the JSON is cut off."""
        now = time.monotonic()
        for call_id, parts in list(self._parts.items()):
            if now - parts.since > PARTS_S:
                del self._parts[call_id]
                _log.warning("body parts missing", call_id=call_id)
                self._begin(parts.call)
                parts.call.stop(ErrorCode.GATEWAY_LOST)

    def _on_cancel(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        message = _CANCEL.decode(payload)
        for call_id in message.call_ids:
            call = self.running.get(call_id)
            if call is None:
                continue
            if call_id in self._parts:
                del self._parts[call_id]
                self._begin(call)
            call.stop(ErrorCode(message.reason))

    def _beat(self) -> None:
        """One request to each gateway that has calls here; nobody listening there means that it is gone."""
        now = time.monotonic()
        gateways = {call.header.gateway for call in self.running.values() if not call.orphaned}
        for gateway in gateways:
            if now - self._gateways_heard.setdefault(gateway, now) > GATEWAY_SILENT_S:
                self._gateway_lost(gateway)
                continue
            try:
                self.router.bus.ask(
                    subjects.inbox_alive(gateway), self.router.process.encode(), self._heard(gateway), HEARTBEAT_S
                )
            except NatsError as error:
                _log.warning("heartbeat not sent", gateway=gateway, error=type(error).__name__)
        for gateway in set(self._gateways_heard) - gateways:
            del self._gateways_heard[gateway]

    def _heard(self, gateway: str) -> OnReply:
        def replied(payload: bytes | None, headers: bytes | None) -> None:
            if payload is None:
                if not self.router.bus.is_connected:
                    self._gateways_heard[gateway] = time.monotonic()  # our own silence, not the gateway's
            elif no_responders(headers):
                self._gateway_lost(gateway)
            else:
                self._gateways_heard[gateway] = time.monotonic()

        return replied

    def _gateway_lost(self, gateway: str) -> None:
        _log.warning("gateway lost", gateway=gateway)
        self._gateways_heard.pop(gateway, None)
        for call in list(self.running.values()):
            if call.header.gateway != gateway:
                continue
            if call.header.kept:
                call.orphaned = True  # others can still read the answer: the client that resumes it, or repeats its key
            else:
                call.stop(ErrorCode.GATEWAY_LOST)

    async def _renew(self, older_than_s: float) -> None:
        """Keep the leases of calls that are not short; metering names those that ended without us."""
        due = time.monotonic() - older_than_s / 2
        calls = [(c.header.call_id, c.header.epoch) for c in self.running.values() if c.accepted_at < due]
        calls.extend(self.router.outcomes.live())
        if not calls:
            return
        request = metering.RenewLeases(self.router.process, tuple(calls))
        try:
            raw = await self.router.bus.call(
                subjects.rpc(metering.SERVICE, metering.RENEW), _ENCODER.encode(request), 2.0
            )
        except (TimeoutError, NatsError) as error:
            _log.warning("leases not renewed", calls=len(calls), error=type(error).__name__)
            return
        self.router.outcomes.heard()
        for call_id in _RENEWED.decode(raw).ended:
            call = self.running.get(call_id)
            if call is not None:
                _log.warning("call ended elsewhere", call_id=call_id)
                call.stop(ErrorCode.STALE)
