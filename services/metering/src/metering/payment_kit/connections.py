"""Kept connections to one origin, and one exchange at a time on each: HTTP/1.1 with `httptools`' parser.

A general client costs a millisecond of CPU per call, more than all else that reporting a charge needs. Nothing is
repeated here: a connection that breaks leaves its request in doubt, and who asked decides. No redirect is followed, no
proxy comes from the environment, nothing is decompressed.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
_CONNECT_S: Final = 3.0
_IDLE_S: Final = 4.0
"""Common servers close an unused connection after five seconds."""
_READ_BYTES: Final = 65_536
_LAST_INTERIM: Final = 199


class NotConnectedError(Exception):
    """Nothing was sent: there is no connection."""


class NoAnswerError(Exception):
    """The request may have arrived; no whole answer came."""


@dataclass(frozen=True, slots=True)
class Received:
    """An answer, whatever it says."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class _Reading:
    """Callbacks of the parser for one answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False
        self.keeps_alive = False
        """Whether the connection may be used again; the parser knows it only while it says that all is there."""

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("more than one answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self.body += piece
        if len(self.body) > ANSWER_BYTES_MAX:
            raise ValueError("too large")

    def on_message_complete(self) -> None:
        if self.status <= _LAST_INTERIM:
            self.headers.clear()
            return
        self.complete = True
        self.keeps_alive = self.parser.should_keep_alive()

    def ends_with_the_connection(self) -> bool:
        """Whether an answer without a length is whole once the server has hung up."""
        return self.status > _LAST_INTERIM and not {"content-length", "transfer-encoding"} & self.headers.keys()


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_at: float = 0.0


@dataclass(slots=True)
class Connections:
    """Connections to the origin of a URL."""

    url: str
    at_once: asyncio.Semaphore
    timeout_s: float
    """Longest wait for one answer, from the first byte sent to its last byte."""
    _idle: list[_Connection] = field(default_factory=list)

    async def exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Received:
        """Send one request and read its answer.

        Args:
            method: upper case.
            target: path and query, encoded; begins with `/`.
            headers: without `Host` and `Content-Length`; of signs that a header may have.
            body: may be empty; then only POST and PUT name its length.

        Raises:
            NotConnectedError, NoAnswerError: see the classes.
        """
        async with self.at_once:
            connection = await self._connected()
            reading = _Reading()
            try:
                async with asyncio.timeout(self.timeout_s):
                    connection.writer.write(self._head(method, target, headers, body) + body)
                    await connection.writer.drain()
                    await _read(connection.reader, reading)
            except (OSError, TimeoutError, ValueError, httptools.HttpParserError) as error:
                connection.writer.close()
                raise NoAnswerError(type(error).__name__) from error
            except BaseException:
                connection.writer.close()
                raise
            self._keep(connection, reading)
        return Received(reading.status, reading.headers, bytes(reading.body))

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    async def _connected(self) -> _Connection:
        oldest = time.monotonic() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.used_at > oldest and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        split = urlsplit(self.url)
        secure = split.scheme == "https"
        context = ssl.create_default_context() if secure else None
        try:
            async with asyncio.timeout(min(_CONNECT_S, self.timeout_s)):
                port = split.port or (443 if secure else 80)
                reader, writer = await asyncio.open_connection(split.hostname, port, ssl=context)
        except (OSError, TimeoutError) as error:
            raise NotConnectedError(type(error).__name__) from error
        return _Connection(reader, writer)

    def _keep(self, connection: _Connection, reading: _Reading) -> None:
        if reading.complete and reading.keeps_alive:
            connection.used_at = time.monotonic()
            self._idle.append(connection)
        else:
            connection.writer.close()

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"host: {urlsplit(self.url).netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method in {"POST", "PUT"}:
            lines.append(f"content-length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _read(reader: asyncio.StreamReader, reading: _Reading) -> None:
    while not reading.complete:
        piece = await reader.read(_READ_BYTES)
        if not piece:
            if reading.ends_with_the_connection():
                return
            raise ConnectionResetError("hung up before the answer was whole")
        reading.parser.feed_data(piece)
