"""Frames to gateways: what is ready for a gateway at the same time leaves in one message.

Frames of a call whose answer is kept go to the stream of kept answers as well, in messages of their own.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

import structlog
from nats.errors import Error as NatsError

from contracts.frames import FrameKind, header
from contracts.subjects import frames, inbox_frames
from runtime import failpoints
from runtime.bus import Bus

_log = structlog.get_logger("frames")
DATA_WAIT_S: Final = 0.002
"""How long bytes in the midst of an answer wait for company. The first bytes of an answer and its end never wait."""
_MESSAGE_BYTES_MAX: Final = 2 * 2**20


@dataclass(slots=True)
class Lane:
    """Where the frames of one call go, and its bytes that wait."""

    gateway: str
    number: int
    sequence: int = 0
    waiting: list[bytes] = field(default_factory=list)
    kept_as: str = ""
    """The call's id, when its answer is kept."""


class FramesOut:
    """Collects frames per gateway and sends them in order.

    All frames but DATA leave at the end of the turn of the event loop, together with everything that waits.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._parcels: dict[str, _Parcel] = {}
        self._leaving = False
        self._timed = False

    def data(self, lane: Lane, payload: bytes) -> None:
        """Bytes of an answer; several for one call may become one frame."""
        parcel = self._parcel(lane.gateway, len(payload))
        if not lane.waiting:
            parcel.lanes.append(lane)
        lane.waiting.append(payload)
        if not self._timed:
            self._timed = True
            self._loop.call_later(DATA_WAIT_S, self._time_out)

    def put(self, lane: Lane, kind: FrameKind, payload: bytes) -> None:
        """One frame of another kind."""
        parcel = self._parcel(lane.gateway, len(payload))
        if lane.waiting:
            parcel.frame(lane, FrameKind.DATA, _taken(lane))
        parcel.frame(lane, kind, payload)
        if not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._flush)

    def _parcel(self, gateway: str, size: int) -> "_Parcel":
        parcel = self._parcels.get(gateway)
        if parcel is None or parcel.size + size > _MESSAGE_BYTES_MAX:
            if parcel is not None:
                self._send(gateway, parcel)
            parcel = self._parcels[gateway] = _Parcel()
        parcel.size += size
        return parcel

    def _time_out(self) -> None:
        self._timed = False
        self._flush()

    def _flush(self) -> None:
        self._leaving = False
        parcels, self._parcels = self._parcels, {}
        for gateway, parcel in parcels.items():
            self._send(gateway, parcel)

    def _send(self, gateway: str, parcel: "_Parcel") -> None:
        for lane in parcel.lanes:
            if lane.waiting:
                parcel.frame(lane, FrameKind.DATA, _taken(lane))
        if parcel.kept is not None:
            self._keep(parcel.kept)
        try:
            failpoints.hit("provider_router.before_frames")
            self._bus.send(inbox_frames(gateway), b"".join(parcel.parts))
        except (NatsError, ConnectionError) as error:  # the gateway notices the gap, the client gets an error
            _log.warning("frames not sent", gateway=gateway, error=type(error).__name__)

    def _keep(self, kept: dict[str, list[bytes]]) -> None:
        for call_id, parts in kept.items():
            try:
                self._bus.send(frames(call_id), b"".join(parts))
            except NatsError as error:  # readers notice the gap
                _log.warning("frames not kept", call_id=call_id, error=type(error).__name__)


class _Parcel:
    """What leaves together for one gateway."""

    __slots__ = ("kept", "lanes", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.lanes: list[Lane] = []
        """Those with bytes that wait."""
        self.size = 0
        self.kept: dict[str, list[bytes]] | None = None
        """Frames of answers that are kept, by call."""

    def frame(self, lane: Lane, kind: FrameKind, payload: bytes) -> None:
        frame = (header(kind, lane.number, lane.sequence, len(payload)), payload)
        self.parts += frame
        if lane.kept_as:
            if self.kept is None:
                self.kept = {}
            self.kept.setdefault(lane.kept_as, []).extend(frame)
        lane.sequence += 1


def _taken(lane: Lane) -> bytes:
    waiting = lane.waiting
    payload = waiting[0] if len(waiting) == 1 else b"".join(waiting)
    waiting.clear()
    return payload
