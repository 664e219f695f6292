"""The only module that opens a socket to a provider: connections by origin, kept alive while they are clean.

No proxy from the environment, no redirect followed, no cookie kept or sent, nothing decompressed.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from provider_router.connection import Connection, Rests
from provider_router.transport import (
    ClosedEarlyError,
    ConnectError,
    Deadlines,
    InvalidRequestError,
    Phase,
    Response,
    TimedOutError,
)

IDLE_S: Final = 15.0
"""An unused connection is closed after this; common servers keep theirs for longer."""
IDLE_PER_ORIGIN_MAX: Final = 512
STALE_S: Final = 2.0
"""A used connection that is closed without an answer within this time had been closed before the request arrived."""
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_PATH: Final = re.compile(r"[\x21-\x7e]*")
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "cookie"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Origin:
    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class _Address:
    origin: _Origin
    prefix: str
    authority: str


class Upstream:
    """Client of all providers; one per process.

    Args:
        tls: verification context for https; Python's default (system trust store, host names checked) when absent.
        idle_s: seconds after which an unused connection is closed.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, idle_s: float = IDLE_S) -> None:
        self._tls = tls
        self._idle_s = idle_s
        self._addresses: dict[str, _Address] = {}
        self._idle: dict[_Origin, list[Connection]] = {}
        self._connections: set[Connection] = set()
        self._rests: Rests | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(
        self, base_url: str, path: str, headers: Sequence[tuple[str, str]], body: bytes, deadlines: Deadlines
    ) -> Response:
        """POST a body; returns once the answer's head is here. See `Opener`.

        Args:
            base_url: http or https, may have a path prefix, e.g. `https://api.openai.com/v1`.
            path: appended to it, begins with `/`.
            headers: in this order; host, length and encoding are set here.
            body: sent as it is; its content type is among `headers`.
            deadlines: of this call.
        """
        address = self._address(base_url)
        head = _request_head(address, path, headers, len(body))
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        total_at = started_at + deadlines.total_s
        used = self._take_idle(address.origin)
        if used is not None:
            try:
                return await used.exchange(head, body, deadlines, total_at)
            except ClosedEarlyError as error:
                if not error.silent or loop.time() - started_at > STALE_S:
                    raise
                # The provider closed an idle connection while the request was on its way: once more, on a new one.
        fresh = await self._connect(loop, address.origin, min(deadlines.connect_s, total_at - loop.time()))
        return await fresh.exchange(head, body, deadlines, total_at)

    @property
    def connections(self) -> int:
        """Open connections, used and unused."""
        return len(self._connections)

    @property
    def idle(self) -> int:
        """Open connections that wait for the next call."""
        return sum(len(idle) for idle in self._idle.values())

    def close(self) -> None:
        """Drop all connections; answers still arriving end with `ClosedEarlyError`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in tuple(self._connections):
            connection.fail(ClosedEarlyError(silent=False))
        self._idle.clear()

    def _address(self, base_url: str) -> _Address:
        address = self._addresses.get(base_url)
        if address is None:
            address = self._addresses[base_url] = _parse_address(base_url)
        return address

    def _take_idle(self, origin: _Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, origin: _Origin, connect_s: float) -> Connection:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        rests = self._rests = self._rests or Rests(loop)
        try:
            async with asyncio.timeout(connect_s):
                transport, connection = await loop.create_connection(
                    lambda: Connection(loop, origin, rests, self._released, self._connections.discard),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.tls else None,
                )
        except TimeoutError as error:
            raise TimedOutError(Phase.CONNECT) from error
        except OSError as error:
            raise ConnectError(str(error)) from error
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        return connection

    def _released(self, connection: Connection) -> None:
        origin = connection.origin
        assert isinstance(origin, _Origin)  # noqa: S101 - `_connect` gave it
        idle = self._idle.setdefault(origin, [])
        if self._closed or len(idle) >= IDLE_PER_ORIGIN_MAX:
            connection.abort()
            return
        connection.idle_since = connection.loop.time()
        idle.append(connection)
        if self._sweep is None:
            self._sweep = connection.loop.call_later(self._idle_s / 3, self._expire, connection.loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        oldest = loop.time() - self._idle_s
        for origin, idle in tuple(self._idle.items()):
            for connection in idle:
                if connection.idle_since < oldest:
                    connection.abort()
            kept = [connection for connection in idle if not connection.closed]
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        self._sweep = loop.call_later(self._idle_s / 3, self._expire, loop) if self._idle else None


def _parse_address(base_url: str) -> _Address:
    if not _PATH.fullmatch(base_url):
        raise InvalidRequestError("a provider's base URL has no blanks or control characters")
    try:
        url = urlsplit(base_url)
        port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
    except ValueError as error:
        raise InvalidRequestError("the provider's base URL is not a URL") from error
    host = url.hostname or ""
    plain = not (url.username or url.password or url.query or url.fragment)
    if not (port and host and plain):
        raise InvalidRequestError("a provider's base URL is http(s)://host[:port][/path] and nothing else")
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _DEFAULT_PORTS[url.scheme] else f"{shown}:{port}"
    return _Address(_Origin(host, port, url.scheme == "https"), url.path.rstrip("/"), authority)


def _request_head(address: _Address, path: str, headers: Sequence[tuple[str, str]], length: int) -> bytes:
    if not path.startswith("/") or not _PATH.fullmatch(path):
        raise InvalidRequestError("a path begins with a slash and has no blanks or control characters")
    # The values may be keys, so they stay out of the messages.
    for name, _ in headers:
        if not _may_be_sent(name):
            raise InvalidRequestError(f"header {name[:40]!r} cannot be sent")
    if not _HEADER_VALUE.fullmatch("".join([value for _, value in headers])):
        raise InvalidRequestError("the value of a header has a line break or another character that cannot be sent")
    lines = [
        f"POST {address.prefix}{path} HTTP/1.1",
        f"host: {address.authority}",
        f"content-length: {length}",
        "accept-encoding: identity",
        *[f"{name}: {value}" for name, value in headers],
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1")


@lru_cache(256)
def _may_be_sent(name: str) -> bool:
    return bool(_HEADER_NAME.fullmatch(name)) and name.lower() not in _OURS
