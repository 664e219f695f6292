"""Requests on the bare socket, for what no HTTP library would send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from journeys.system import Caller, System


class Socket:
    """A connection to the gateway that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, within_s: float = 10.0) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        async with asyncio.timeout(within_s):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers, body

    async def closed(self, within_s: float = 10.0) -> None:
        """The gateway has closed."""
        async with asyncio.timeout(within_s):
            assert await self._reader.read() == b""


@asynccontextmanager
async def connected(system: System) -> AsyncIterator[Socket]:
    address = urlsplit(system.hub.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def head(caller: Caller, *lines: str) -> bytes:
    fixed = ["POST /v1/chat/completions HTTP/1.1", "host: hub", f"authorization: Bearer {caller.key}"]
    return "\r\n".join([*fixed, "content-type: application/json", *lines, "", ""]).encode()
