"""`GET /api/v2/calls/{id}/stream`: the answer of a call that is kept, from where the client lost it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Final

import structlog
from fastapi import Header
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from contracts.errors import ErrorCode, HubError
from contracts.ids import is_call_id
from gateway.api import errors
from gateway.api.services import Caller, Used
from gateway.dispatch import BLOCKED_S
from gateway.event_ids import EventIds
from gateway.kept import KeptAnswer, KeptAnswers
from gateway.relay import with_credits

_log = structlog.get_logger("resume")
NOTHING_KEPT_S: Final = 1.5
"""A running call of which nothing is stored by then does not keep its answer."""
_EVENT_DIGITS_MAX: Final = 12
_STREAM_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def stream(
    call_id: str, used: Used, principal: Caller, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """The answer of the caller's own call, from the event behind `Last-Event-ID` on, else from the beginning.

    Calls with an `Idempotency-Key` or `x-hub-resumable: true` keep their answer for some minutes, and go on when their
    client or its gateway is gone. An answer that was not streamed comes whole. A foreign call is not found.
    """
    after = _position(last_event_id)
    if not is_call_id(call_id):
        raise _not_found()
    view = await used.peers.call(call_id, principal.account)
    if view.user != principal.user:
        raise _not_found()
    async with AsyncExitStack() as stack:
        reading = Reading(used.kept, call_id)
        stack.callback(reading.end)
        await reading.begun()
        headers = {"x-call-id": call_id}
        if not view.stream:
            return Response(await reading.whole(), media_type="application/json", headers=headers)
        longest_s = used.kept.longest_s + BLOCKED_S
        return _Resumed(reading.events(EventIds(after)), headers | _STREAM_HEADERS, stack.pop_all(), longest_s)


class Reading:
    """One reader of a kept answer, who can wait."""

    def __init__(self, answers: KeptAnswers, call_id: str) -> None:
        self._answers = answers
        self._news = asyncio.Event()
        self._answer: KeptAnswer = answers.follow(call_id, self._news.set)

    def end(self) -> None:
        """Read no more."""
        self._answers.leave(self._answer, self._news.set)

    async def begun(self) -> None:
        """Wait until there is something to say.

        Raises:
            HubError: the call failed before its answer began, or its answer is not kept.
        """
        answer = self._answer
        try:
            async with asyncio.timeout(NOTHING_KEPT_S):
                while not (answer.next_frame or answer.lost):
                    await self._change()
        except TimeoutError:
            text = "The answer of this call is not kept; send `x-hub-resumable: true` with a call to be resumed."
            raise HubError(ErrorCode.NOT_FOUND, text, param="call_id") from None
        while not (answer.head or answer.end or answer.error):
            await self._change()
        if answer.error is not None and not answer.chunks:
            raise answer.error

    async def whole(self) -> bytes:
        """An answer that is no stream, once it is booked.

        Raises:
            HubError: there is none.
        """
        answer = self._answer
        while not answer.delivered:
            if answer.error is not None:
                raise answer.error
            await self._change()
        return b"".join((*answer.chunks, _tail(answer)))

    async def events(self, ids: EventIds) -> AsyncIterator[bytes]:
        """The events of a stream as they come; the tail when it is booked, an error event instead of it."""
        answer, taken = self._answer, 0
        while True:
            new, taken = answer.chunks[taken:], len(answer.chunks)
            delivered, error = answer.delivered, answer.error
            out = ids.feed(b"".join(new))
            if delivered:
                out += ids.feed(_tail(answer))
            elif error is not None:
                out += errors.event(error)
            if out:
                yield out
            if delivered or error is not None:
                return
            if taken == len(answer.chunks):
                await self._change()

    async def _change(self) -> None:
        await self._news.wait()
        self._news.clear()


class _Resumed(StreamingResponse):
    """A stream whose reader leaves with it, also when the client never took a byte."""

    def __init__(
        self, content: AsyncIterator[bytes], headers: dict[str, str], reading: AsyncExitStack, longest_s: float
    ) -> None:
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._reading = reading
        self._longest_s = longest_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that takes longer than any answer lasts is dropped."""
        async with self._reading:
            try:
                async with asyncio.timeout(self._longest_s):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                _log.info("client takes no bytes", path=scope["path"])


def _tail(answer: KeptAnswer) -> bytes:
    held, splice_at = answer.end or (b"", None)
    return held if answer.settled is None else with_credits(held, splice_at, answer.settled, answer.answered_by)


def _position(given: str | None) -> int:
    if given is None or not given.strip():
        return 0
    text = given.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > _EVENT_DIGITS_MAX:
        raise HubError(
            ErrorCode.INVALID_REQUEST, "Last-Event-ID is the number in the last `id:` line.", param="Last-Event-ID"
        )
    return int(text)


def _not_found() -> HubError:
    return HubError(ErrorCode.NOT_FOUND, "There is no such call.", param="call_id")
