"""What a call sees of the way to a provider: deadlines, answers, and everything that can go wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """What took too long."""

    CONNECT = "connect"
    SEND = "send"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    TOTAL = "total"


class UpstreamError(Exception):
    """What can go wrong between us and a provider; the subclasses are all there is."""


class ConnectError(UpstreamError):
    """No connection: name, address, refusal or certificate."""


class TimedOutError(UpstreamError):
    """A deadline has passed; `phase` tells which."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(f"timed out: {phase}")
        self.phase = phase


class ClosedEarlyError(UpstreamError):
    """The provider closed the connection before its answer was complete; `silent` = without a byte of it."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__("closed before the answer" if silent else "the answer was cut off")
        self.silent = silent


class MalformedError(UpstreamError):
    """The answer is not HTTP/1.1 as we read it, or is encoded in a way that was not asked for."""


class TooLargeError(UpstreamError):
    """Headers or body beyond their bound."""


class InvalidRequestError(UpstreamError):
    """The request cannot be sent as HTTP: a line break in a header, a bad path, an address that is no http(s) URL."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds; each must be above zero."""

    connect_s: float
    first_byte_s: float
    """From the end of the request to the end of the response head."""
    idle_s: float
    """Between two reads of the answer, while somebody reads it; and between two writes of a large request."""
    total_s: float
    """From `open` to the last byte."""


class Response(Protocol):
    """An answer whose head is here; the body may still be on its way."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; repeated ones joined by `, `."""
        ...

    async def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes.

        Raises:
            UpstreamError: it is larger, or did not arrive whole.
        """
        ...

    async def chunk(self) -> bytes | None:
        """Everything that has arrived since the last call, joined; None at the proper end.

        Raises:
            UpstreamError: the answer did not arrive whole; bytes that came before are returned first.
        """
        ...

    async def relay(self, take: Callable[[bytes], bool]) -> None:
        """Give `take` what has arrived, now and inside every later read, until it says that it has enough.

        Returns at the proper end too. No task is woken for each piece.

        Raises:
            UpstreamError: the answer did not arrive whole; bytes that came before have been given.
            Exception: what `take` raised.
        """
        ...

    def finish(self) -> None:
        """All that matters has been read: the connection may take a moment to end the answer, to be used again.

        Only the end of the body may still come, within a second; otherwise the connection is dropped. Never waits.
        """
        ...

    def close(self) -> None:
        """Give the answer up: aborts the connection unless the answer is complete or finishing. Safe to repeat."""
        ...


class Opener(Protocol):
    """Whatever answers a request: a provider behind a socket, or the demonstration provider without one."""

    async def open(
        self, base_url: str, path: str, headers: Sequence[tuple[str, str]], body: bytes, deadlines: Deadlines
    ) -> Response:
        """POST a body; returns once the answer's head is here.

        Raises:
            UpstreamError: one of its subclasses.
        """
        ...
