"""A TCP proxy on loopback that delays, throttles, stalls, resets and refuses."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self

_CHUNK = 65_536
_QUEUED_MAX = 256


class FaultProxy:
    """Stands before one server; its faults count for all connections, old and new."""

    def __init__(self, port: int) -> None:
        """`port` of the server behind it, on loopback."""
        self._upstream_port = port
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._flow = asyncio.Event()
        self._flow.set()
        self.port = 0
        self.latency_s = 0.0
        self.bytes_per_s = 0
        self.refuse = False

    async def start(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stall(self) -> None:
        """Let nothing through; connections stay open."""
        self._flow.clear()

    def resume(self) -> None:
        """Let go on what was stalled."""
        self._flow.set()

    def reset_all(self) -> None:
        """Break every connection with RST."""
        for pair in list(self._connections.values()):
            for writer in pair:
                _reset(writer)

    async def close(self) -> None:
        """Break everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self._flow.set()
        self.reset_all()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = (writer, up_writer)
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        except OSError:
            _reset(writer)
            _reset(up_writer)
        finally:
            del self._connections[task]
            writer.close()
            up_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_MAX)
        reading = asyncio.create_task(self._read(reader, queue))
        try:
            await self._write(queue, writer)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await reading

    async def _read(self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            await queue.put((loop.time(), data))

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            came_at, data = await queue.get()
            await self._flow.wait()
            if (early_s := came_at + self.latency_s - loop.time()) > 0:
                await asyncio.sleep(early_s)
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
