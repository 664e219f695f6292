"""Failpoints: inert unless armed, and exact when they are."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runtime import failpoints


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_points_are_inert_unless_armed() -> None:
    failpoints.hit("metering.after_commit")
    failpoints.arm("other.point:raise")
    failpoints.hit("metering.after_commit")


def test_armed_point_raises_after_so_many_passes_and_so_many_times() -> None:
    failpoints.arm("a.b:raise:after=2:times=1, c.d:raise")
    failpoints.hit("a.b")
    failpoints.hit("a.b")
    with pytest.raises(ConnectionError, match=r"a\.b"):
        failpoints.hit("a.b")
    failpoints.hit("a.b")
    for _ in range(3):
        with pytest.raises(ConnectionError):
            failpoints.hit("c.d")


def test_point_with_a_text_acts_on_messages_that_have_it() -> None:
    failpoints.hit_with("a.b", b"poison")
    failpoints.arm("a.b:raise:with=poison")
    failpoints.hit_with("a.b", b"wholesome")
    with pytest.raises(ConnectionError, match=r"a\.b"):
        failpoints.hit_with("a.b", b"some poison here")


def test_point_of_probability_zero_never_acts() -> None:
    failpoints.arm("a.b:raise:p=0")
    for _ in range(1000):
        failpoints.hit("a.b")


@pytest.mark.parametrize("text", ["a.b:explode", "a.b", "a.b:raise:when=now", "a.b:raise:after=soon"])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HUB_FAIL|unpack|literal"):
        failpoints.arm(text)


def test_kill_ends_the_process_as_kill_9_does() -> None:
    code = "from runtime import failpoints as f; f.arm('a.b:kill'); f.hit('x.y'); print('on', flush=True); f.hit('a.b')"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == "on\n"
    assert "failpoint a.b: kill" in ended.stderr


def test_kill_behind_a_message_comes_once_the_message_is_written() -> None:
    code = """
import asyncio, sys, uvloop
from runtime import failpoints

async def main():
    _, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    failpoints.arm("a.b:kill")
    asyncio.get_running_loop().call_soon(writer.transport.writelines, [b"a ", b"message"])
    failpoints.hit_written("x.y")
    failpoints.hit_written("a.b")
    await asyncio.Event().wait()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = str(server.getsockname()[1])
        process = subprocess.Popen([sys.executable, "-c", code, port], stderr=subprocess.DEVNULL)
        connection, _ = server.accept()
        with connection:
            assert connection.makefile("rb").read() == b"a message"
        assert process.wait(30) == -signal.SIGKILL
