"""A program that the supervisor keeps running, and how it is started."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Identity = Literal["same", "namespace", "setuid"]
"""Who the child is, see `child.py`."""

_CHILD: Final = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class Program:
    """One child process: what to run, how to end it, how to tell that it is ready."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends when the supervisor dies."""
    identity: Identity = "same"
    inherited_fds: tuple[int, ...] = ()
    stop_within_s: float = 10.0


def _trampoline(program: Program) -> tuple[str, ...]:
    return (
        sys.executable, "-I", "-S", str(_CHILD), str(int(program.death_signal)), program.identity, str(os.getpid()),
        *program.command,
    )  # fmt: skip


async def spawn(program: Program) -> asyncio.subprocess.Process:
    """Start a program in a session of its own, so that Ctrl-C reaches it only through the supervisor.

    Call it from the main thread: the death signal fires when the spawning thread ends.
    """
    return await asyncio.create_subprocess_exec(
        *_trampoline(program),
        env=dict(program.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        limit=2**20,
        start_new_session=True,
        pass_fds=program.inherited_fds,
    )


async def finish(process: asyncio.subprocess.Process, stop: signal.Signals, within_s: float) -> None:
    """Ask a process to end; kill it when it has not within the time."""
    if process.returncode is not None:
        return
    _send(process, stop)
    try:
        await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        _send(process, signal.SIGKILL)
        await process.wait()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        return  # it has ended by itself meanwhile


async def http_status(port: int, path: str, timeout_s: float = 2.0) -> int | None:
    """Status of a GET on loopback; None when nothing answers. Bare sockets: an HTTP client costs 100 ms of imports."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    parts = line.split()
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
