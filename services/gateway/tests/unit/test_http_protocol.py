"""Limits of a request's head, over raw sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway.http_protocol import Limits, limited

LIMITS = Limits(headers=10, header_bytes=2000, url_bytes=500, head_timeout_s=0.3)
Raw = Callable[..., Awaitable[bytes]]


class App:
    """Answers 200 with the path; `/slow` waits for the test, `/early` answers before the body is read."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.left: list[str] = []
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        self.served.append(path)

        if path != "/early":
            while (await receive()).get("more_body"):
                pass
        self.started.set()
        if path == "/slow" and await self._left_meanwhile(receive):
            self.left.append(path)
            self.gone.set()
            return
        body = path.encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _left_meanwhile(self, receive: Any) -> bool:
        """Wait for the test or for the client's leaving, whichever comes first."""
        leaving, going_on = asyncio.ensure_future(receive()), asyncio.ensure_future(self.go_on.wait())
        await asyncio.wait([leaving, going_on], return_when=asyncio.FIRST_COMPLETED)
        going_on.cancel()
        leaving.cancel()
        return leaving.done() and not leaving.cancelled() and leaving.result()["type"] == "http.disconnect"


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def port(app: App) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=limited(LIMITS),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _exchange(port: int, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send pieces, one write each; the whole answer, which must be followed by the connection's end."""
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return _parsed(await reader.read())


def _parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body


def _assert_refused(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    assert answer[0] == status
    assert answer[1]["connection"] == "close"
    assert int(answer[1]["content-length"]) == len(answer[2])
    assert json.loads(answer[2])["error"]["code"] == code


async def test_a_request_within_the_limits_is_served(port: int, app: App) -> None:
    answer = await _exchange(port, b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (answer[0], answer[2]) == (200, b"/ok")
    assert app.served == ["/ok"]


async def test_a_connection_serves_many_requests_each_with_its_own_limits(port: int) -> None:
    request = b"GET /ok HTTP/1.1\r\nhost: x\r\nx-pad: " + b"a" * 1500 + b"\r\n\r\n"
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        for _ in range(5):
            writer.write(request)
            assert (await reader.readuntil(b"/ok")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"x-%d: 1\r\n" % number for number in range(11)),
        b"x-pad: " + b"a" * 2001 + b"\r\n",
        b"x" * 2001 + b": a\r\n",
        b"".join(b"x-%d: %b\r\n" % (number, b"a" * 300) for number in range(8)),
    ],
    ids=["too many", "long value", "long name", "too large in all"],
)
async def test_too_many_or_too_large_headers_are_431(port: int, app: App, headers: bytes) -> None:
    answer = await _exchange(port, b"POST /x HTTP/1.1\r\nhost: x\r\n" + headers + b"content-length: 0\r\n\r\n")
    _assert_refused(answer, 431, "headers_too_large")
    assert not app.served


async def test_a_header_that_never_ends_is_431(port: int, app: App) -> None:
    answer = await _exchange(port, b"GET /x HTTP/1.1\r\nx-pad: ", *[b"a" * 500] * 20)
    _assert_refused(answer, 431, "headers_too_large")
    assert not app.served


async def test_a_long_url_is_414(port: int, app: App) -> None:
    answer = await _exchange(port, b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    _assert_refused(answer, 414, "headers_too_large")
    assert not app.served


async def test_slow_headers_are_408(port: int) -> None:
    answer = await _exchange(port, b"GET /x HTTP/1.1\r\nhost: x\r\nx-slow")
    _assert_refused(answer, 408, "request_timeout")


async def test_a_silent_connection_is_closed(port: int) -> None:
    answer = await _exchange(port)
    _assert_refused(answer, 408, "request_timeout")


async def test_slow_headers_of_a_second_request_are_408(port: int) -> None:
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        writer.write(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"/ok")
        writer.write(b"GET /x HTTP/1.1\r\nho")
        _assert_refused(_parsed(await reader.read()), 408, "request_timeout")


async def test_a_slow_answer_is_no_slow_head(port: int, app: App) -> None:
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await app.started.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LIMITS.head_timeout_s * 2):
                await reader.read()
        app.go_on.set()
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /x HTTP/9.9\r\n\r\n",
        b"GET /x HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400_in_json(port: int, app: App, request_bytes: bytes) -> None:
    _assert_refused(await _exchange(port, request_bytes), 400, "invalid_request")


async def test_an_answer_before_the_body_is_read_closes_the_connection(port: int) -> None:
    head = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n"
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        writer.write(head + b"a" * 100_000)
        assert (await reader.read()).endswith(b"/early")


async def test_a_client_that_leaves_is_noticed(port: int, app: App) -> None:
    async with _connected(port) as (_, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await app.started.wait()
    async with asyncio.timeout(5):
        await app.gone.wait()
    assert app.left == ["/slow"]
    app.go_on.set()


async def test_a_client_that_leaves_with_a_second_request_waiting_is_noticed(port: int, app: App) -> None:
    async with _connected(port) as (_, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /ok HTTP/1.1\r\nhost: x\r\n\r\n")
        await app.started.wait()
    async with asyncio.timeout(5):
        await app.gone.wait()
    assert app.left == ["/slow"]
    app.go_on.set()


async def test_nobody_is_told_of_a_client_that_leaves_after_its_answer(port: int, app: App) -> None:
    async with _connected(port) as (reader, writer):
        writer.write(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"/ok")
    await _exchange(port, b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert not app.left


async def test_a_refused_pipelined_request_lets_the_answer_before_it_end(port: int, app: App) -> None:
    async with asyncio.timeout(5), _connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await app.started.wait()
        writer.write(b"GET /x HTTP/1.1\r\nx-pad: " + b"a" * 3000 + b"\r\n\r\n")
        await writer.drain()
        await _exchange(port, b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")  # read after the one above
        app.go_on.set()
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"/slow")
    assert app.served == ["/slow", "/ok"]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_an_upgrade_is_ignored(port: int, protocol: bytes) -> None:
    head = b"GET /ok HTTP/1.1\r\nhost: x\r\nupgrade: %b\r\nconnection: upgrade, close\r\n\r\n" % protocol
    answer = await _exchange(port, head)
    assert answer[0] == 200
