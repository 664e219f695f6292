"""The benchmark's own processes: the mock upstream, and one run of the load generator."""

import http.client
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench.load import WINDOW_CLOSES, WINDOW_OPENS
from bench.measure import Memory, Processes, Snapshot, memory, snapshot
from bench.results import Result
from bench.upstream import Counts

_PACKAGES: Final = Path(__file__).parent.parent
_STOP_S: Final = 10.0


class BenchError(RuntimeError):
    """The benchmark can't go on; the message says why."""


class _Listening(msgspec.Struct):
    port: int


class _Announcement(msgspec.Struct):
    event: str


@dataclass(frozen=True)
class Upstream:
    """A running mock upstream."""

    pid: int
    url: str
    """Base URL, without a path."""

    def counts(self) -> Counts:
        """Return what it has counted so far."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request("GET", "/counts")
            return msgspec.json.decode(connection.getresponse().read(), type=Counts)
        finally:
            connection.close()


@dataclass(frozen=True)
class Run:
    """One run of the load generator, with what the processes used meanwhile.

    Attributes:
        before: when the measured window opened.
        after: when it closed.
        memory: at its end.
    """

    result: Result
    before: Snapshot
    after: Snapshot
    memory: dict[str, Memory]


@contextmanager
def running_upstream(port: int = 0) -> Iterator[Upstream]:
    """Run a mock upstream; port 0 takes a free one.

    Raises:
        BenchError: it did not start.
    """
    command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
    with _popen(command) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchError(f"the mock upstream did not start on port {port}; its own words are above")
            found = msgspec.json.decode(line, type=_Listening).port
            yield Upstream(pid=process.pid, url=f"http://127.0.0.1:{found}")
        finally:
            _stop(process)


def run_load(url: str, keys: Sequence[str], arguments: Sequence[str], processes: Processes) -> Run:
    """Run the load generator and look at `processes` at both ends of its window.

    Args:
        url: base URL of what is measured.
        keys: access keys, used in turn.
        arguments: further ones, as `bench.load` has them.
        processes: whose CPU and memory to measure.

    Raises:
        BenchError: the load generator failed.
        ProcessGoneError: one of the processes has ended.
    """
    with tempfile.NamedTemporaryFile("w", prefix="bench-keys-") as keys_file:  # Mode 0600.
        keys_file.write("\n".join(keys))
        keys_file.flush()
        command = [sys.executable, "-m", "bench.load", "--announce", "--url", url, "--keys", keys_file.name]
        with _popen([*command, *arguments]) as process:
            try:
                before = _look_at(process, WINDOW_OPENS, processes)
                after = _look_at(process, WINDOW_CLOSES, processes)
                used = memory(processes)
                assert process.stdout is not None
                last = process.stdout.readline()
                if process.wait() != 0 or not last:
                    raise BenchError(f"the load generator failed with code {process.returncode}")
            finally:
                _stop(process)
    return Run(msgspec.json.decode(last, type=Result), before, after, used)


def _look_at(process: subprocess.Popen[bytes], event: str, processes: Processes) -> Snapshot:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"the load generator ended with code {process.wait()} before: {event}")
    said = msgspec.json.decode(line, type=_Announcement).event
    if said != event:
        raise BenchError(f"the load generator said {said!r} instead of {event!r}")
    return snapshot(processes)


def _popen(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(_PACKAGES)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
