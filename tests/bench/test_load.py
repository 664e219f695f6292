"""The load generator against the mock upstream, each in its own process: both must count the same."""

import asyncio
import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from bench.answers import question, stream_script
from bench.client import Target
from bench.load import run
from bench.measure import cpu_between, elsewhere_between, memory, parse_stat, snapshot
from bench.options import Options
from bench.processes import Upstream, run_load, running_upstream
from bench.upstream import Counts


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


def difference(before: Counts, after: Counts) -> dict[str, int]:
    then = msgspec.structs.asdict(before)
    return {name: count - then[name] for name, count in msgspec.structs.asdict(after).items() if count != then[name]}


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--model", "bench-json", "--requests", "500", "--clients", "7"], "json"),
        (["--model", "bench-burst", "--stream", "--requests", "200", "--clients", "7"], "streams"),
        (["--model", "bench-chunks", "--stream", "--requests", "100", "--clients", "7"], "streams"),
        (["--model", "bench-paced-200-20", "--stream", "--requests", "50", "--clients", "25"], "streams"),
        (["--model", "bench-json", "--rate", "500", "--requests", "200", "--clients", "2"], "json"),
    ],
)
def test_both_sides_count_the_same_number_of_requests(upstream: Upstream, arguments: list[str], kind: str) -> None:
    before = upstream.counts()
    result = run_load(upstream.url, ["one", "two"], arguments, {"upstream": (upstream.pid,)}).result
    counted = difference(before, upstream.counts())
    asked = int(arguments[arguments.index("--requests") + 1])
    assert result.total.failed == {}
    assert result.connect_failures == 0
    assert result.total.sent == result.total.ok == asked
    assert asked - 2 <= result.window.ok == result.latency.count <= asked  # the first may come before the window opens
    assert counted.pop("requests") == counted.pop(kind) == asked
    assert counted.pop("streams_finished", asked) == asked
    assert counted.pop("connections") == result.connections + 1  # and the one that asked for the counts before
    assert counted == {}


def test_a_timed_run_counts_warm_up_and_last_answers_outside_its_window(upstream: Upstream) -> None:
    before = upstream.counts()
    arguments = ["--model", "bench-json", "--seconds", "0.5", "--warmup", "0.2", "--clients", "4"]
    found = run_load(upstream.url, ["one"], arguments, {"upstream": (upstream.pid,)})
    result = found.result
    assert difference(before, upstream.counts())["requests"] == result.total.sent == result.total.ok
    assert 0 < result.window.ok < result.total.ok
    assert 0.4 < result.seconds < 10
    assert 0 < cpu_between(found.before, found.after)["upstream"] < 10
    assert found.memory["upstream"].rss > 5_000_000


def test_a_paced_stream_takes_its_time(upstream: Upstream) -> None:
    arguments = ["--model", "bench-paced-100-21", "--stream", "--requests", "10", "--clients", "10"]
    result = run_load(upstream.url, ["one"], arguments, {}).result
    assert result.latency.p50 >= 190  # how much more is the machine's
    assert result.stall.count == 10
    assert result.stall.max < result.latency.max
    assert result.first.p50 < result.latency.p50


def test_a_path_that_is_not_there_is_counted_as_failed_with_its_status(upstream: Upstream) -> None:
    result = asyncio.run(run(options(f"{upstream.url}/nowhere", model="unknown/bench-json", requests=20)))
    assert result.total.failed == {"HTTP 404": 20}
    assert result.total.ok == 0


def options(
    url: str, *, model: str, requests: int, stream: bool = False, rate_per_s: float = 0, timeout_s: float = 5
) -> Options:
    return Options(
        target=Target.at(url),
        keys=["key"],
        model=model,
        stream=stream,
        clients=2,
        seconds=1,
        requests=requests,
        rate_per_s=rate_per_s,
        timeout_s=timeout_s,
    )


Answer = Callable[[asyncio.StreamWriter], None]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that reads a request and answers as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SCRIPT = stream_script("bench-burst", 10, include_usage=True)


def cut_in_the_middle(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"".join(SCRIPT.chunks[:5]))
    writer.close()


def end_without_done(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"".join(SCRIPT.chunks) + b"0\r\n\r\n")


def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


def answer_twice(writer: asyncio.StreamWriter) -> None:
    writer.write(2 * (HEAD + b"".join(SCRIPT.chunks + SCRIPT.tail)))


def not_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\r\n\r\n")


def lose_a_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"".join(SCRIPT.chunks[:4] + SCRIPT.chunks[5:] + SCRIPT.tail))


def say_nothing(_writer: asyncio.StreamWriter) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (cut_in_the_middle, "cut"),
        (end_without_done, "no [DONE]"),
        (hang_up, "no answer"),
        (answer_twice, "stray bytes"),
        (not_http, "bad HTTP"),
        (lose_a_chunk, "pieces lost"),
        (say_nothing, "timeout"),
    ],
)
async def test_an_answer_that_is_not_whole_is_never_counted_as_good(answer: Answer, fault: str) -> None:
    async with answering(answer) as url:
        result = await run(options(url, model="bench-burst-10", requests=4, stream=True, timeout_s=0.5))
    assert result.total.ok == 0
    assert result.total.failures == result.total.sent >= 4
    assert set(result.total.failed) == {fault}


async def test_a_whole_answer_of_the_same_server_is_counted_as_good() -> None:
    async with answering(lambda writer: writer.write(HEAD + b"".join(SCRIPT.chunks + SCRIPT.tail))) as url:
        result = await run(options(url, model="bench-burst-10", requests=4, stream=True))
    assert result.total.ok == 4
    assert result.total.failed == {}


async def test_where_nobody_listens_nothing_is_good_and_the_attempts_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    result = await run(options(f"http://127.0.0.1:{port}", model="bench-json", requests=4, timeout_s=0.5))
    assert result.total.ok == result.total.sent == 0
    assert result.connect_failures > 0


async def test_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    release = asyncio.Event()
    waiting: list[asyncio.StreamWriter] = []

    def hold_back(writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)
        if len(waiting) == 20:
            release.set()

    async def let_go() -> None:
        await release.wait()
        for writer in waiting:
            writer.write(HEAD + b"".join(SCRIPT.chunks + SCRIPT.tail))

    letting_go = asyncio.create_task(let_go())
    async with answering(hold_back) as url:
        result = await run(options(url, model="bench-burst-10", requests=20, stream=True, rate_per_s=100))
    await letting_go
    assert result.total.ok == 20
    assert 150 < result.latency.max < 4000  # the first waited for 19 more at 100 a second


# The mock upstream as an HTTP server


def test_pipelined_requests_are_answered_in_order_on_one_connection(upstream: Upstream) -> None:
    host, port = upstream.url.removeprefix("http://").split(":")
    bodies = [question("bench-chunks-5", stream=True), question("bench-json", stream=False)]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n"
    requests = head % (len(bodies[0]), b"") + bodies[0] + head % (len(bodies[1]), b"connection: close\r\n") + bodies[1]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(requests)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"[DONE]") < answer.index(b'"chat.completion"')


def test_a_request_in_single_bytes_is_understood(upstream: Upstream) -> None:
    host, port = upstream.url.removeprefix("http://").split(":")
    body = b'{"model":"bench-json"}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 22\r\n\r\n" + body
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(request)):
            connection.sendall(request[n : n + 1])
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", None, 200),
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b'{"model":"gpt-4o"}', 404),
        ("GET", "/v1/elsewhere", None, 404),
    ],
)
def test_the_mock_answers_by_path_and_model(
    upstream: Upstream, method: str, path: str, body: bytes | None, status: int
) -> None:
    connection = http.client.HTTPConnection(upstream.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body)
        assert connection.getresponse().status == status
    finally:
        connection.close()


def test_a_client_that_leaves_is_counted_as_a_cut_stream(upstream: Upstream) -> None:
    before = upstream.counts().streams_cut
    connection = http.client.HTTPConnection(upstream.url.removeprefix("http://"), timeout=10)
    connection.request("POST", "/v1/chat/completions", question("bench-paced-1-1000", stream=True))
    assert connection.getresponse().status == 200
    connection.close()
    deadline = time.monotonic() + 5
    while upstream.counts().streams_cut == before and time.monotonic() < deadline:
        pass
    assert upstream.counts().streams_cut == before + 1


# Processes


def test_a_stat_line_with_spaces_and_parentheses_in_its_command_is_read() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = "42 (a ) b (c) S 7 42 42 0 -1 4194304 1 2 3 4 500 30 20 1 20 0 1 0 99 1000 10"
    stat = parse_stat(line)
    assert (stat.parent, stat.own_s, stat.reaped_s) == (7, 530 / ticks, 21 / ticks)


def test_the_time_of_a_child_that_has_ended_stays_with_its_parent() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        "import subprocess, sys\nsys.stdin.readline()\n"
        f"subprocess.run([sys.executable, '-c', {work!r}])\nprint('done', flush=True)\nsys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = snapshot({"parent": (process.pid,)})
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.stdout.readline()
        after = snapshot({"parent": (process.pid,)})
        process.stdin.close()
    assert cpu_between(before, after)["parent"] >= 0.29


def test_a_named_child_counts_only_under_its_own_name() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        both = memory({"us": (os.getpid(),), "child": (child.pid,)})
        alone = memory({"us": (os.getpid(),)})
        assert child.stdin is not None
        child.stdin.close()
    assert both["child"].rss > 0
    assert alone["us"].rss > both["us"].rss


def test_what_nobody_named_is_elsewhere() -> None:
    before = snapshot({})
    started = time.process_time()
    while time.process_time() - started < 0.1:
        pass
    assert elsewhere_between(before, snapshot({})) >= 0.08
