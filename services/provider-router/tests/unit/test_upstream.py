"""The client against a real server on a real socket, one that says exactly the bytes of each test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from provider_router.connection import Connection, Rests
from provider_router.transport import (
    ClosedEarlyError,
    ConnectError,
    Deadlines,
    InvalidRequestError,
    MalformedError,
    Phase,
    TimedOutError,
    TooLargeError,
    UpstreamError,
)
from provider_router.upstream import Upstream

DEADLINES = Deadlines(connect_s=5, first_byte_s=5, idle_s=5, total_s=10)
LIMIT = 1_000_000
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Reads whole requests; `script` says what each connection does with them."""

    def __init__(self) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.url = ""
        self.script: Script = answering(SHORT)
        self.closed = asyncio.Event()
        """A client's connection has ended."""

    async def request(self, reader: asyncio.StreamReader) -> bool:
        """Read one request; false at the end of the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
            self.bodies.append(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self.heads.append(head)
        return True

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except ConnectionError:
            pass
        finally:
            self.closed.set()
            writer.close()


Script = Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(*answers: bytes) -> Script:
    """Give each request of a connection the next answer (the last one for ever)."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while await server.request(reader):
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    return script


def saying(*pieces: bytes, end: bool = True) -> Script:
    """Give the first request these pieces, each as a write of its own; then close, or stay silent."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if not end:
            await reader.read()

    return script


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    listening = await asyncio.start_server(served.connected, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield served
    listening.close()


@asynccontextmanager
async def client(idle_s: float = 15) -> AsyncIterator[Upstream]:
    upstream = Upstream(idle_s=idle_s)
    yield upstream
    upstream.close()
    await until(lambda: upstream.connections == 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the conditions are other objects' states
            await asyncio.sleep(0.001)


async def whole(
    upstream: Upstream,
    url: str,
    deadlines: Deadlines = DEADLINES,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"{}",
) -> bytes:
    response = await upstream.open(url, "/v1/x", headers, body, deadlines)
    return await response.read(LIMIT)


async def settled() -> None:
    """Connections go back to the pool two turns of the loop after their answer."""
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_request_is_exactly_what_was_asked_for(server: Server) -> None:
    async with client() as upstream:
        response = await upstream.open(server.url + "/base/", "/chat", [("X-Key", "k")], b"body", DEADLINES)
        assert (response.status, await response.read(10)) == (200, b"hi")
    host = server.url.removeprefix("http://").encode()
    assert server.heads == [
        b"POST /base/chat HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 4\r\naccept-encoding: identity"
        b"\r\nX-Key: k\r\n\r\n"
    ]
    assert server.bodies == [b"body"]


async def test_a_connection_is_used_again(server: Server) -> None:
    async with client() as upstream:
        for _ in range(5):
            assert await whole(upstream, server.url) == b"hi"
            await settled()
    assert server.connections == 1


async def test_chunked_answers_are_kept_alive_too(server: Server) -> None:
    server.script = answering(CHUNKED + b"3;x=y\r\nabc\r\n0\r\nTrailer: t\r\n\r\n")
    async with client() as upstream:
        for _ in range(3):
            assert await whole(upstream, server.url) == b"abc"
            await settled()
    assert server.connections == 1


async def test_calls_at_once_have_connections_of_their_own(server: Server) -> None:
    async with client() as upstream:
        assert await asyncio.gather(*(whole(upstream, server.url) for _ in range(8))) == [b"hi"] * 8
        await settled()
        assert upstream.connections == server.connections == 8


@pytest.mark.parametrize("stray", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray", b"x", b"HTTP/1.1 500 Bad"])
@pytest.mark.parametrize("apart", [False, True])
async def test_bytes_after_an_answer_never_reach_the_next_caller(server: Server, stray: bytes, apart: bool) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.request(reader):
            writer.write(SHORT if apart else SHORT + stray)
            if apart:
                await writer.drain()
                writer.write(stray)

    server.script = script
    async with client() as upstream:
        for _ in range(4):
            assert await whole(upstream, server.url) == b"hi"
            await settled()
    assert server.connections == 4


async def test_bytes_that_come_while_a_connection_is_idle_end_it(server: Server) -> None:
    go = asyncio.Event()

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.request(reader):
            writer.write(SHORT)
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray")

    server.script = script
    async with client() as upstream:
        await whole(upstream, server.url)
        await until(lambda: upstream.idle == 1)
        go.set()
        await until(lambda: upstream.connections == 0)
        assert await whole(upstream, server.url) == b"hi"


async def test_bytes_that_are_on_their_way_when_the_next_call_begins_are_not_its_answer(server: Server) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await answering(SHORT)(server, reader, writer)

    server.script = script
    async with client() as upstream:
        await whole(upstream, server.url)
        writers[0].write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray")
        assert await whole(upstream, server.url) == b"hi"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    ],
)
async def test_a_connection_that_the_server_gives_up_is_not_used_again(server: Server, answer: bytes) -> None:
    server.script = answering(answer)
    async with client() as upstream:
        for _ in range(3):
            assert await whole(upstream, server.url) == b"hi"
            await settled()
    assert server.connections == 3


async def test_an_idle_connection_expires(server: Server) -> None:
    async with client(idle_s=0.05) as upstream:
        await whole(upstream, server.url)
        await until(lambda: upstream.connections == 0)
        assert await whole(upstream, server.url) == b"hi"
    assert server.connections == 2


async def test_a_stale_connection_is_replaced_once(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(SHORT)
        if server.connections == 1:
            await server.request(reader)  # and close without a byte, as a server whose own time-out has passed
        else:
            await reader.read()

    server.script = script
    async with client() as upstream:
        await whole(upstream, server.url)
        await settled()
        assert await whole(upstream, server.url) == b"hi"
    assert server.connections == 2


async def test_a_new_connection_that_is_closed_silently_is_not_tried_again(server: Server) -> None:
    server.script = saying()
    async with client() as upstream:
        with pytest.raises(ClosedEarlyError) as error:
            await whole(upstream, server.url)
    assert error.value.silent
    assert server.connections == 1


async def test_a_used_connection_that_gave_some_byte_is_not_tried_again(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(SHORT)
        await server.request(reader)
        writer.write(b"HTTP/1.1 2")

    server.script = script
    async with client() as upstream:
        await whole(upstream, server.url)
        await settled()
        with pytest.raises(ClosedEarlyError) as error:
            await whole(upstream, server.url)
    assert not error.value.silent
    assert len(server.heads) == 2


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", ClosedEarlyError),
        (b"HTTP/1.1 200 OK\r\ncontent-le", ClosedEarlyError),
        (CHUNKED + b"5\r\nhal", ClosedEarlyError),
        (CHUNKED + b"4\r\nhalf\r\n", ClosedEarlyError),
        (CHUNKED + b"4\r\nhalf\r\n0\r\n", ClosedEarlyError),
        (CHUNKED + b"zz\r\n", MalformedError),
        (b"SSH-2.0-OpenSSH\r\n", MalformedError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi", MalformedError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nhi", MalformedError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi", MalformedError),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi", MalformedError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", MalformedError),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", MalformedError),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", TooLargeError),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n", TooLargeError),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 10_000_000, TooLargeError),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, TooLargeError),
        (CHUNKED + b"2\r\nhi\r\n0\r\na: " + b"b" * 10_000_000, TooLargeError),
        (CHUNKED + b"2;" + b"b" * 10_000_000, TooLargeError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"b" * 2_000_000, TooLargeError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"b" * 2_000_000, TooLargeError),
    ],
)
async def test_a_broken_answer_is_an_error_of_its_kind(
    server: Server, said: bytes, failure: type[UpstreamError]
) -> None:
    server.script = saying(said)
    async with client() as upstream:
        with pytest.raises(failure):
            await whole(upstream, server.url)
        await until(lambda: upstream.connections == 0)


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + SHORT, b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b""),
    ],
)
async def test_every_way_to_end_a_body_is_understood(server: Server, said: bytes, body: bytes) -> None:
    server.script = saying(said)
    async with client() as upstream:
        assert await whole(upstream, server.url) == body
        server.script = saying(*(said[i : i + 1] for i in range(len(said))))
        assert await whole(upstream, server.url) == body


async def test_headers_come_in_lower_case_with_repeats_joined(server: Server) -> None:
    server.script = saying(
        b"HTTP/1.1 429 Slow Down\r\nRetry-After: 3\r\nX-A: 1\r\nx-a: \xe9\r\n"
        b"Set-Cookie: c=1\r\ncontent-length: 0\r\n\r\n"
    )
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert response.status == 429
        assert response.headers["retry-after"] == "3"
        assert response.headers["x-a"] == "1, é"
        server.script = answering(SHORT)
        await whole(upstream, server.url)
    assert b"cookie" not in server.heads[-1].lower()


async def test_a_redirect_is_an_answer_like_any_other(server: Server) -> None:
    server.script = answering(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert response.status == 302
    assert len(server.heads) == 1


async def test_chunks_come_as_they_arrive_and_joined_when_nobody_asked(server: Server) -> None:
    go = asyncio.Event()

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        writer.write(b"1\r\nb\r\n1\r\nc\r\n")
        writer.write(b"0\r\n\r\n")

    server.script = script
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert await response.chunk() == b"a"
        go.set()
        assert await response.chunk() == b"bc"
        assert await response.chunk() is None
        assert await response.chunk() is None


def pieces(count: int, gap_s: float) -> Script:
    """Answer each request of a connection with one chunk per piece, `gap_s` apart."""

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.request(reader):
            writer.write(CHUNKED)
            for number in range(count):
                writer.write(b"5\r\n%05d\r\n" % number)
                await writer.drain()
                await asyncio.sleep(gap_s)
            writer.write(b"0\r\n\r\n")

    return script


async def relayed(upstream: Upstream, server: Server) -> list[bytes]:
    answer = await upstream.open(server.url, "/x", [], b"", DEADLINES)
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return False

    try:
        await answer.relay(take)
    finally:
        answer.close()
    return taken


@pytest.mark.parametrize(("gap_s", "together"), [(0, True), (0.01, False)])
async def test_pieces_in_quick_succession_are_read_a_few_at_a_time(
    server: Server, gap_s: float, together: bool
) -> None:
    server.script = pieces(40, gap_s)
    async with client() as upstream:
        for _ in range(2):
            taken = await relayed(upstream, server)
            assert b"".join(taken) == b"".join(b"%05d" % number for number in range(40))
            assert (len(taken) < 25) == together
            await asyncio.sleep(0.01)
    assert server.connections == 1


async def test_a_relay_that_is_given_up_while_its_connection_rests_closes_it(server: Server) -> None:
    server.script = pieces(1_000_000, 0)
    async with client() as upstream:
        for _ in range(5):
            task = asyncio.create_task(relayed(upstream, server))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: upstream.connections == 0)


async def test_what_came_before_a_cut_is_given_before_the_error(server: Server) -> None:
    server.script = saying(CHUNKED + b"1\r\na\r\n")
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        await until(server.closed.is_set)
        assert await response.chunk() == b"a"
        with pytest.raises(ClosedEarlyError):
            await response.chunk()


@pytest.mark.parametrize(
    ("pieces", "deadlines", "phase"),
    [
        ((), Deadlines(5, 0.05, 5, 5), Phase.FIRST_BYTE),
        ((b"HTTP/1.1 200 OK\r\n",), Deadlines(5, 0.05, 5, 5), Phase.FIRST_BYTE),
        ((CHUNKED + b"1\r\na\r\n",), Deadlines(5, 5, 0.05, 5), Phase.IDLE),
        ((CHUNKED + b"1\r\na\r\n",), Deadlines(5, 5, 5, 0.05), Phase.TOTAL),
        ((), Deadlines(5, 5, 5, 0.05), Phase.TOTAL),
    ],
)
async def test_every_phase_has_its_deadline(
    server: Server, pieces: tuple[bytes, ...], deadlines: Deadlines, phase: Phase
) -> None:
    server.script = saying(*pieces, end=False)
    async with client() as upstream:
        with pytest.raises(TimedOutError) as error:
            await whole(upstream, server.url, deadlines)
        await asyncio.wait_for(server.closed.wait(), 5)
    assert error.value.phase is phase


async def test_a_slow_but_steady_answer_outlives_the_idle_deadline(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(CHUNKED)
        for _ in range(10):
            await asyncio.sleep(0.03)
            writer.write(b"1\r\na\r\n")
        writer.write(b"0\r\n\r\n")

    server.script = script
    async with client() as upstream:
        assert await whole(upstream, server.url, Deadlines(5, 5, 0.2, 5)) == b"a" * 10


async def test_a_server_that_does_not_read_a_large_request_runs_into_the_send_deadline(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cast("asyncio.Transport", writer.transport).pause_reading()
        await server.closed.wait()

    server.script = script
    async with client() as upstream:
        with pytest.raises(TimedOutError) as error:
            await whole(upstream, server.url, Deadlines(5, 5, 0.1, 10), body=b"x" * 30_000_000)
        assert error.value.phase is Phase.SEND
        server.closed.set()


async def test_a_large_request_arrives_whole(server: Server) -> None:
    body = bytes(range(256)) * 20_000
    async with client() as upstream:
        for _ in range(2):
            assert await whole(upstream, server.url, body=body) == b"hi"
            await settled()
    assert server.bodies == [body, body]
    assert server.connections == 1


async def test_an_early_answer_to_a_large_request_ends_the_sending(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        cast("asyncio.Transport", writer.transport).pause_reading()
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.wait_for(server.closed.wait(), 60)

    server.script = script
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"x" * 30_000_000, DEADLINES)
        assert (response.status, await response.read(10)) == (413, b"no")
        await until(lambda: upstream.connections == 0)
        server.closed.set()


async def test_unread_bytes_are_bounded_and_the_provider_waits(server: Server) -> None:
    sent = 0

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
        for _ in range(500):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    server.script = script
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", Deadlines(5, 5, 0.2, 20))
        before = -1
        while before != sent:  # until the buffers of both sides are full; longer than the idle deadline
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 30_000_000
        largest = total = 0
        while (data := await response.chunk()) is not None:
            largest, total = max(largest, len(data)), total + len(data)
        assert total == 50_000_000
        assert largest < 1_000_000


async def test_closing_an_answer_closes_the_connection(server: Server) -> None:
    server.script = saying(CHUNKED + b"1\r\na\r\n", end=False)
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert await response.chunk() == b"a"
        response.close()
        response.close()
        await asyncio.wait_for(server.closed.wait(), 5)
        with pytest.raises(ClosedEarlyError):
            await response.chunk()


async def test_closing_a_complete_answer_keeps_the_connection(server: Server) -> None:
    async with client() as upstream:
        for _ in range(2):
            response = await upstream.open(server.url, "/", (), b"", DEADLINES)
            await response.read(10)
            response.close()
            await settled()
    assert server.connections == 1


class Pipe(asyncio.Transport):
    """A transport that only remembers whether it was aborted."""

    aborted = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


async def test_a_caller_cancelled_in_the_turn_in_which_the_head_came_closes_the_connection() -> None:
    loop, pipe = asyncio.get_running_loop(), Pipe()
    connection = Connection(loop, "origin", Rests(loop), lambda _connection: None, lambda _connection: None)
    connection.connection_made(pipe)
    task = asyncio.create_task(connection.exchange(b"head", b"body", DEADLINES, loop.time() + 5))
    await asyncio.sleep(0)
    connection.data_received(CHUNKED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pipe.aborted


async def test_a_cancelled_caller_closes_the_connection(server: Server) -> None:
    server.script = saying(end=False)
    async with client() as upstream:
        task = asyncio.create_task(whole(upstream, server.url))
        await until(lambda: len(server.heads) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.closed.wait(), 5)
        assert upstream.connections == 0


async def test_a_finished_answer_ends_by_itself_and_its_connection_is_used_again(server: Server) -> None:
    go = asyncio.Event()

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        writer.write(b"1\r\n\n\r\n0\r\n\r\n")
        await answering(SHORT)(server, reader, writer)

    server.script = script
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert await response.chunk() == b"a"
        response.finish()
        response.close()
        go.set()
        await until(lambda: upstream.idle == 1)
        assert await whole(upstream, server.url) == b"hi"
    assert server.connections == 1


@pytest.mark.parametrize("more", [b"", b"9000\r\n" + b"x" * 0x9000])
async def test_a_finished_answer_that_does_not_end_is_dropped(server: Server, more: bytes) -> None:
    go = asyncio.Event()

    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        writer.write(more)
        await reader.read()

    server.script = script
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        assert await response.chunk() == b"a"
        response.finish()
        go.set()
        await asyncio.wait_for(server.closed.wait(), 5)
        await until(lambda: upstream.connections == 0)


async def test_nobody_listening_is_a_connect_error() -> None:
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    async with client() as upstream:
        with pytest.raises(ConnectError):
            await whole(upstream, f"http://127.0.0.1:{port}")


async def test_plain_http_behind_https_is_a_connect_error(server: Server) -> None:
    async def script(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server.script = script
    async with client() as upstream:
        with pytest.raises(ConnectError):
            await whole(upstream, server.url.replace("http:", "https:"), Deadlines(2, 2, 2, 2))


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer a\r\nx: y"),
        ("authorization", "a\nb"),
        ("authorization", "a\0b"),
        ("x", "snowman \u2603"),
        ("a b", "c"),
        ("a:", "c"),
        ("", "c"),
        ("Host", "elsewhere"),
        ("Cookie", "a=b"),
        ("transfer-encoding", "chunked"),
    ],
)
async def test_a_header_that_could_change_the_request_is_refused(server: Server, header: tuple[str, str]) -> None:
    async with client() as upstream:
        with pytest.raises(InvalidRequestError) as error:
            await whole(upstream, server.url, headers=[header])
    assert server.connections == 0
    assert header[1] not in str(error.value) or header[1] == "c"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a",
        "",
        "http://",
        "http://u:p@a",
        "http://a?b",
        "http://a#b",
        "http://a:x",
        "http://a/ b",
        "http://a\r\nb",
    ],
)
async def test_an_address_that_is_no_plain_url_is_refused(url: str) -> None:
    async with client() as upstream:
        with pytest.raises(InvalidRequestError):
            await whole(upstream, url)


@pytest.mark.parametrize("path", ["x", "", "/a b", "/a\r\nb", "/\u00e9"])
async def test_a_path_that_is_none_is_refused(server: Server, path: str) -> None:
    async with client() as upstream:
        with pytest.raises(InvalidRequestError):
            await upstream.open(server.url, path, (), b"", DEADLINES)


async def test_closing_the_client_ends_running_answers(server: Server) -> None:
    server.script = saying(CHUNKED, end=False)
    async with client() as upstream:
        response = await upstream.open(server.url, "/", (), b"", DEADLINES)
        upstream.close()
        with pytest.raises(ClosedEarlyError):
            await response.chunk()
