"""Keeps one program running: restarts it with back-off, relays its lines, ends it when asked."""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from hub_local.console import Console
from hub_local.programs import Program, finish, spawn

_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_MAX_S: Final = 10.0
_HEALTHY_AFTER_S: Final = 30.0
_POLL_S: Final = 0.02
CONFIGURATION_ERROR: Final = 78
"""Exit code of a service whose settings are wrong."""


class StartError(Exception):
    """The hub cannot come up; the text says which part and what it wrote last."""


class Keeper:
    """One program and its present process."""

    def __init__(
        self,
        program: Program,
        console: Console,
        on_change: Callable[[], None],
        first_env: Mapping[str, str] | None = None,
    ) -> None:
        """`first_env` is added at the first start only."""
        self.program = program
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._first_env = dict(first_env or {})
        self._console = console
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=15)

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def pid(self) -> int | None:
        """Pid of the running process; None between two starts."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    async def run(self) -> None:
        """Start, and start again whenever it ends, until `stop`."""
        try:
            await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> None:
        wait_s = _BACKOFF_FIRST_S
        extra = self._first_env
        while not self._stopping.is_set():
            began = time.monotonic()
            how = await self._run_once(extra)
            extra = {}
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _HEALTHY_AFTER_S:
                wait_s = _BACKOFF_FIRST_S
            self._console.say(f"{self.name} ended ({how}); starting it again in {wait_s:g} s", error=True)
            await self._pause(wait_s)
            wait_s = min(wait_s * 2, _BACKOFF_MAX_S)
            self.restarts += 1

    async def _run_once(self, extra_env: Mapping[str, str]) -> str:
        """One process from start to end; returns how it ended."""
        try:
            self.process = await spawn(replace(self.program, env={**self.program.env, **extra_env}))
        except OSError as error:
            return str(error)  # no memory, no process number: as likely to pass as a crash
        self._on_change()
        if self._stopping.is_set():
            await finish(self.process, self.program.stop_signal, self.program.stop_within_s)
        await self._relay(self.process)
        code = await self.process.wait()
        self._on_change()
        return _how(code)

    async def ready(self, within_s: float) -> None:
        """Wait until the program answers that it is ready.

        Raises:
            StartError: not in time, or its settings are wrong.
        """
        deadline = time.monotonic() + within_s
        while not await self.program.ready():
            code = self.process.returncode if self.process is not None else None
            if code == CONFIGURATION_ERROR:
                raise StartError(f"{self.name} refuses its settings: {self._tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} is not ready after {within_s:g} s; its last lines:\n{self._tail()}")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End the process and start no other; `run` has returned afterwards."""
        self._stopping.set()
        if self.process is not None:
            await finish(self.process, self.program.stop_signal, self.program.stop_within_s)
        await self._ended.wait()

    def kill(self) -> None:
        """End it at once; PostgreSQL recovers at its next start."""
        self._stopping.set()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGQUIT if self.name == "postgres" else signal.SIGKILL)

    def use_from_now_on(self, program: Program) -> None:
        """What the next start runs."""
        self.program = program

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue  # a line above the limit: asyncio has dropped it
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            self._console.relay(self.name, line)

    def _tail(self) -> str:
        return "\n".join(self._last_lines) or "(it wrote nothing)"


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
