"""Messages of a stream read by their subject, without a consumer: nothing is left on the server by whoever asks.

One request brings a batch of messages, then a status without a payload (NATS' direct get, ADR-31).
"""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from runtime.bus import Bus

_log = structlog.get_logger("stored")
_ENCODER: Final = msgspec.json.Encoder()
_BATCH: Final = 256
_ANSWER_S: Final = 2.0
_STATUS: Final = b"NATS/1.0 "
"""How the headers of a status begin; those of a message have a line end here."""
_BATCH_ENDS: Final = b"NATS/1.0 204"
_SEQUENCE: Final = b"Nats-Sequence: "
_PENDING: Final = b"Nats-Num-Pending: "

Stored = tuple[int, bytes]
"""Sequence in the stream, payload."""


@dataclass(slots=True)
class _Reading:
    done: asyncio.Future[bool]
    """Whether more messages wait than the batch could take."""
    found: list[Stored] = field(default_factory=list)


class StoredMessages:
    """Reads of one stream.

    Args:
        bus: whose user may ask `$JS.API.DIRECT.GET.<stream>`.
        stream: its name; direct reads must be allowed on it.
        inbox: subject below which answers come, the process' own.
    """

    def __init__(self, bus: Bus, stream: str, inbox: str) -> None:
        self._bus = bus
        self._stream = stream
        self._inbox = inbox
        self._tokens = itertools.count(1)
        self._open: dict[bytes, _Reading] = {}

    async def start(self) -> None:
        """Listen for answers."""
        await self._bus.listen(f"{self._inbox}.*", self._on_answer)

    async def read(self, subject: str, after: int = 0) -> list[Stored] | None:
        """What is stored under a subject behind a sequence, oldest first; None when the server does not answer."""
        found: list[Stored] = []
        while True:
            reading = await self._batch(subject, found[-1][0] if found else after)
            if reading is None:
                return None
            found += reading.found
            if not (reading.found and reading.done.result()):
                return found

    async def _batch(self, subject: str, after: int) -> _Reading | None:
        token = next(self._tokens)
        reading = self._open[b"%d" % token] = _Reading(asyncio.get_running_loop().create_future())
        request = _ENCODER.encode({"next_by_subj": subject, "seq": after + 1, "batch": _BATCH})
        try:
            self._bus.send(f"$JS.API.DIRECT.GET.{self._stream}", request, reply=f"{self._inbox}.{token}")
            async with asyncio.timeout(_ANSWER_S):
                await reading.done
        except (NatsError, TimeoutError) as error:
            _log.warning("stream not read", stream=self._stream, error=type(error).__name__)
            return None
        finally:
            del self._open[b"%d" % token]
        return reading

    def _on_answer(self, subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        reading = self._open.get(subject.rpartition(b".")[2])
        if reading is None or reading.done.done() or headers is None:
            return
        if headers.startswith(_STATUS):  # the batch is whole, or nothing was found
            reading.done.set_result(headers.startswith(_BATCH_ENDS) and _number(headers, _PENDING) > 0)
        else:
            reading.found.append((_number(headers, _SEQUENCE), payload))


def _number(headers: bytes, name: bytes) -> int:
    return int(headers.partition(name)[2].partition(b"\r\n")[0] or 0)
