"""Reading a stream's messages page by page, without a consumer and without acknowledging anything.

Source: NATS ADR-31, batched direct get.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from nats.errors import NoRespondersError

from runtime.bus import Bus, no_responders

_PAGE: Final = 256
_PAGE_WAIT_S: Final = 10.0
_END: Final = b"NATS/1.0 204"
_NOTHING: Final = b"NATS/1.0 404"
_numbers = itertools.count(1)


class StreamReadError(Exception):
    """The server refused to read on, or its answer was none."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as the stream has it."""

    sequence: int
    subject: str
    payload: bytes


@dataclass(slots=True)
class _Page:
    messages: list[Stored]
    ended: "asyncio.Future[None]"

    def take(self, _subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if self.ended.done():
            return
        if no_responders(headers):
            self.ended.set_exception(NoRespondersError("the stream is away"))
        elif headers is None or not headers.startswith(b"NATS/1.0\r\n"):
            if headers is not None and headers.startswith((_END, _NOTHING)):
                self.ended.set_result(None)
            else:
                line = (headers or b"no headers").split(b"\r\n", 1)[0].decode(errors="replace")
                self.ended.set_exception(StreamReadError(line))
        else:
            fields = dict(line.split(b": ", 1) for line in headers.split(b"\r\n")[1:] if b": " in line)
            sequence, subject = int(fields[b"Nats-Sequence"]), fields[b"Nats-Subject"].decode()
            self.messages.append(Stored(sequence, subject, payload))


async def pages(
    bus: Bus, inbox: str, stream: str, since: datetime | None = None, last: int | None = None
) -> AsyncIterator[list[Stored]]:
    """Messages in order, a page at a time.

    Args:
        bus: a connection that may publish `$JS.API.DIRECT.GET.<stream>`.
        inbox: a subject under the connection's inbox prefix.
        stream: its name.
        since: stored at this time or later; None = from its beginning.
        last: up to this sequence; None = all that is there when it is read.

    Raises:
        nats.errors.Error, TimeoutError: the bus or the stream is away; start again.
        StreamReadError: the server refused.
    """
    begin: dict[str, Any] = {"seq": 1} if since is None else {"start_time": _text(since)}
    while last is None or begin.get("seq", 0) <= last:
        page = _Page([], asyncio.get_running_loop().create_future())
        reply = f"{inbox}.{next(_numbers)}"
        subscription = await bus.listen(reply, page.take)
        try:
            bus.send(f"$JS.API.DIRECT.GET.{stream}", json.dumps({**begin, "batch": _PAGE}).encode(), reply)
            async with asyncio.timeout(_PAGE_WAIT_S):
                await page.ended
        finally:
            await subscription.unsubscribe()
        if not page.messages:
            return
        yield [message for message in page.messages if last is None or message.sequence <= last]
        begin = {"seq": page.messages[-1].sequence + 1}


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
