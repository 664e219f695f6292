"""The demonstration provider in time: answers like `Upstream.open`, without a socket."""

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from provider_router import sse
from provider_router.adapters import demo
from provider_router.transport import ClosedEarlyError, Deadlines, Phase, Response, TimedOutError, TooLargeError

_JSON: Final = "application/json"
_DELAY_S_MAX: Final = 600.0


class DemoUpstream:
    """Plays what `demo.echo` says; see `Opener`."""

    async def open(
        self,
        base_url: str,  # noqa: ARG002 - there is no address
        path: str,  # noqa: ARG002
        headers: Sequence[tuple[str, str]],  # noqa: ARG002
        body: bytes,
        deadlines: Deadlines,
    ) -> Response:
        """The answer to a request in OpenAI's form; waits as long as the request asks for."""
        try:
            echo = demo.echo(body)
        except msgspec.DecodeError as error:
            return DemoResponse.whole(400, demo.error_body(400, str(error), "invalid_request"), deadlines)
        asked = echo.asked
        await _pause(_seconds(asked.first_delay_ms), deadlines.first_byte_s, Phase.FIRST_BYTE)
        if asked.status != 200:  # noqa: PLR2004
            answer = DemoResponse.whole(
                asked.status, demo.error_body(asked.status, "Asked to fail.", "demo_failure"), deadlines
            )
            if asked.retry_after is not None:
                answer.headers["retry-after"] = str(asked.retry_after)
            return answer
        return DemoResponse(200, "text/event-stream" if echo.stream else _JSON, _script(echo), deadlines)


_Step = tuple[float, bytes | Exception]
"""Seconds to wait (inf = for ever), then bytes or the end of the connection."""


class DemoResponse:
    """See `Response`.

    Args:
        status: HTTP status.
        content_type: of the answer.
        steps: what comes, in order; after the last one the answer is complete.
        deadlines: of the call; those of connecting have been met.
    """

    def __init__(self, status: int, content_type: str, steps: list[_Step], deadlines: Deadlines) -> None:
        self.status = status
        self.headers = {"content-type": content_type}
        self._loop = asyncio.get_running_loop()
        self._steps = steps[::-1]
        self._deadlines = deadlines
        self._total_at = self._loop.time() + deadlines.total_s
        self._due_at = self._loop.time()
        self._failure: Exception | None = None

    @classmethod
    def whole(cls, status: int, body: bytes, deadlines: Deadlines) -> "DemoResponse":
        """A JSON answer that is here at once."""
        return cls(status, _JSON, [(0.0, body)], deadlines)

    async def read(self, limit: int) -> bytes:
        """The whole body; see `Response`."""
        parts: list[bytes] = []
        while (data := await self.chunk()) is not None:
            parts.append(data)
            if sum(map(len, parts)) > limit:
                raise TooLargeError(f"the answer is longer than {limit} bytes")
        return b"".join(parts)

    async def chunk(self) -> bytes | None:
        """Every step that is due, or the next one when it comes; see `Response`."""
        if self._failure is not None:
            raise self._failure
        if not self._steps:
            return None
        await self._wait(self._steps[-1][0])
        parts: list[bytes] = []
        now = self._loop.time()
        while self._steps and self._due_at + self._steps[-1][0] <= now:
            wait_s, what = self._steps.pop()
            self._due_at += wait_s
            if isinstance(what, Exception):
                self._steps.clear()
                self._failure = what
                if not parts:
                    raise what
                break
            parts.append(what)
        return b"".join(parts)

    async def relay(self, take: Callable[[bytes], bool]) -> None:
        """Chunk by chunk."""
        while (data := await self.chunk()) is not None:
            if take(data):
                return

    def finish(self) -> None:
        """Nothing is left to end."""
        self._steps.clear()

    def close(self) -> None:
        """Give it up."""
        self._steps.clear()

    async def _wait(self, wait_s: float) -> None:
        if wait_s <= 0:
            return
        left = self._due_at + wait_s - self._loop.time()
        idle, total = self._deadlines.idle_s, self._total_at - self._loop.time()
        await _pause(left, min(idle, total), Phase.IDLE if idle < total else Phase.TOTAL)


def _script(echo: demo.Echo) -> list[_Step]:
    asked = echo.asked
    answer_id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
    if echo.stream:
        blocks, tail = echo.chunks(answer_id, created), echo.tail(answer_id, created)
    else:
        blocks, tail = [b""] * len(echo.words), echo.whole(answer_id, created)
    stall_at = asked.silent_at if asked.silent_at is not None else len(blocks) // 2
    stall_s = math.inf if asked.silent_at is not None and not asked.stall_ms else _seconds(asked.stall_ms)
    delay_s = _seconds(asked.delay_ms)
    steps: list[_Step] = []
    for number, block in enumerate((*blocks, tail)):
        wait_s = (delay_s if number else 0.0) + (stall_s if number == stall_at else 0.0)
        if number == asked.fail_at:
            return [*steps, (wait_s, ClosedEarlyError(silent=False))]
        if number == asked.cut_at:
            return [*steps, (wait_s, b"" if echo.stream else tail[: len(tail) // 2])]
        if number == asked.error_at:
            error = demo.error_body(500, "Asked to fail in mid-stream.", "demo_failure")
            return [*steps, (wait_s, sse.event(error) if echo.stream else error)]
        steps.append((wait_s, block))
    return steps


async def _pause(wait_s: float, limit_s: float, phase: Phase) -> None:
    if wait_s <= 0:
        return
    if wait_s > limit_s:
        await asyncio.sleep(max(limit_s, 0.0))
        raise TimedOutError(phase)
    await asyncio.sleep(wait_s)


def _seconds(millis: int) -> float:
    return min(max(millis / 1000, 0.0), _DELAY_S_MAX)
