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
        self._listener = socket.socket()
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._closing = False
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._flow = asyncio.Event()
        self._flow.set()
        self.port = 0
        self.latency_s = 0.0
        self.bytes_per_s = 0
        self.refuse = False

    async def start(self) -> Self:
        """Listen on a free port."""
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())
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
        self._closing = True
        if self._accepting is not None:
            with socket.create_connection(("127.0.0.1", self.port)):  # wakes the accepting task, which then ends
                await self._accepting
        self._listener.close()
        self._flow.set()
        self.reset_all()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self) -> None:
        """By hand: a `Server` that is closed between accepting and serving a connection leaks its socket."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            if self._closing:
                connection.close()
                return
            reader, writer = await asyncio.open_connection(sock=connection)
            task = asyncio.create_task(self._on_connection(reader, writer))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

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
