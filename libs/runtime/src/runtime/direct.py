"""NATS over TCP, read without a task: bytes go from the socket's callback to the parser.

asyncio's `StreamReader` copies what it is given into a buffer, stops the socket when that is full, and wakes nats-py's
read loop, which takes 32 KiB at a time. Here the reader gives bytes to `WireParser.take` first; what is left over, and
all of it before nats-py's read loop has begun or while it is busy, takes the ordinary way. Connections that nats-py
upgrades to TLS have nats-py's own reader.
"""

import asyncio
from typing import Any, cast

from nats.aio.transport import TcpTransport

from runtime.wire import WireParser


class DirectTransport(TcpTransport):
    """nats-py's TCP transport with a `DirectReader`."""

    def __init__(self, parser: WireParser) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parser = parser

    def __bool__(self) -> bool:
        """nats-py makes a transport of its own in place of one that is false."""
        return True

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Open the connection; nothing is read directly yet."""
        loop = asyncio.get_running_loop()
        reader = DirectReader(self._parser, buffer_size, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def read(self, buffer_size: int) -> bytes:
        """Called by nats-py's read loop alone: the handshake, which reads lines, is over."""
        reader = cast("asyncio.StreamReader", self._io_reader)
        if not isinstance(reader, DirectReader):
            return await reader.read(buffer_size)
        reader.direct = True
        try:
            return await reader.read(buffer_size)
        finally:
            reader.direct = False


class DirectReader(asyncio.StreamReader):
    """A reader whose bytes pass the parser first.

    Args:
        parser: gives whole messages to their listeners.
        limit: of the ordinary way's buffer.
        loop: the running loop.
    """

    def __init__(self, parser: WireParser, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._parser = parser
        self.direct = False
        """The read loop waits and has parsed everything that it was given."""

    def feed_data(self, data: Any) -> None:
        """Bytes from the socket; what follows a rest that was left to the read loop waits for it."""
        if self.direct:
            data = self._parser.take(data)
            if not data:
                return
            self.direct = False
        super().feed_data(data)
