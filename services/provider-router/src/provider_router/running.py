"""One call while it runs here, and what all calls of this process share."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from contracts import events, frames
from contracts.dispatch import DispatchHeader
from contracts.errors import ErrorCode
from contracts.usage import Candidate
from provider_router.adapters.adapter import Adapter, Translation
from provider_router.catalog.providers import Provider
from provider_router.frames_out import FramesOut, Lane
from provider_router.holds import HoldMeter
from provider_router.outcome import Outcomes
from provider_router.routing.circuit import Routing
from provider_router.transport import Deadlines, Opener, Response
from runtime.bus import Bus
from runtime.telemetry import Tracing

_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Router:
    """What every call of this process shares."""

    bus: Bus
    process: str
    frames: FramesOut
    outcomes: Outcomes
    routing: Routing
    tracing: Tracing
    providers: Mapping[str, Provider]
    adapters: Mapping[str, Adapter]
    openers: Mapping[str, Opener]
    deadlines: Deadlines
    attempts_max: int


@dataclass(slots=True)
class RunningCall:
    """One call while it runs here."""

    header: DispatchHeader
    body: bytes
    hold: HoldMeter
    lane: Lane
    accepted_at: float = field(default_factory=time.monotonic)
    attempts: list[events.Attempt] = field(default_factory=list)
    first_byte_ms: int = 0
    provider_first_byte_ms: int = 0
    relayed: bool = False
    candidate: Candidate | None = None
    """Whose answer is being relayed."""
    translation: Translation | None = None
    answer: Response | None = None
    exhausted: bool = False
    stopped: ErrorCode | None = None
    """Why nobody waits for it any more."""
    task: asyncio.Task[None] | None = None
    orphaned: bool = False
    """Its gateway is gone, but its answer is kept: it goes on."""

    def stop(self, reason: ErrorCode) -> None:
        """End the call early; the first reason counts."""
        if self.stopped is None and self.task is not None:
            self.stopped = reason
            self.task.cancel()

    def frame(self, router: Router, kind: frames.FrameKind, payload: bytes) -> None:
        """Send the next frame to the call's gateway."""
        router.frames.put(self.lane, kind, payload)

    def answering(self, router: Router) -> None:
        """Tell the gateway that the answer begins, and who gives it."""
        candidate = self.candidate or self.header.candidates[0]
        kind = "text/event-stream" if self.header.stream else "application/json"
        head = frames.Head(candidate.provider, candidate.model, kind)
        self.frame(router, frames.FrameKind.HEAD, _ENCODER.encode(head))

    def elapsed_ms(self) -> int:
        """Milliseconds since the call was accepted."""
        return ms_since(self.accepted_at)


def ms_since(started: float) -> int:
    """Whole milliseconds since a monotonic time."""
    return int((time.monotonic() - started) * 1000)
