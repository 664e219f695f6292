"""Frames to gateways: what one turn of the loop produces for a gateway leaves in one message."""

import asyncio
from typing import Final

import structlog
from nats.errors import Error as NatsError

from contracts import frames, subjects
from runtime import failpoints
from runtime.bus import Bus

_log = structlog.get_logger("frames")
_MESSAGE_BYTES_MAX: Final = 2 * 2**20


class FramesOut:
    """Collects frames per gateway and sends them at the end of the turn, in order."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, list[bytes]] = {}
        self._bytes: dict[str, int] = {}

    def put(self, gateway: str, kind: frames.FrameKind, number: int, sequence: int, payload: bytes) -> None:
        """Queue one frame for a gateway."""
        waiting = self._waiting.get(gateway)
        if waiting is None:
            waiting = self._waiting[gateway] = []
            self._bytes[gateway] = 0
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._flush)
        elif self._bytes[gateway] + len(payload) > _MESSAGE_BYTES_MAX:
            self._send(gateway)
            waiting = self._waiting[gateway] = []
            self._bytes[gateway] = 0
        waiting.append(frames.header(kind, number, sequence, len(payload)))
        waiting.append(payload)
        self._bytes[gateway] += len(payload)

    def _flush(self) -> None:
        for gateway in list(self._waiting):
            self._send(gateway)
        self._waiting.clear()
        self._bytes.clear()

    def _send(self, gateway: str) -> None:
        parts = self._waiting[gateway]
        if parts:
            try:
                failpoints.hit("provider_router.before_frames")
                self._bus.send(subjects.inbox_frames(gateway), b"".join(parts))
            except (NatsError, ConnectionError) as error:  # the gateway notices the gap, the client gets an error
                _log.warning("frames not sent", gateway=gateway, error=type(error).__name__)
