"""Child processes that a test starts, kills, stops and goes on with; nothing starts them again by itself."""

import asyncio
import signal
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from hub_local.programs import Program, finish, spawn
from rig.waiting import until

_LINES_MAX = 20_000


class Processes:
    """Programs by name, each with at most one process."""

    def __init__(self) -> None:
        self._programs: dict[str, Program] = {}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._lines: dict[str, deque[str]] = {}

    def add(self, program: Program) -> None:
        """Know a program; `start` runs it."""
        self._programs[program.name] = program

    @property
    def names(self) -> list[str]:
        """All programs."""
        return list(self._programs)

    @property
    def pids(self) -> dict[str, int]:
        """Pids of what runs now."""
        return {name: process.pid for name, process in self._running.items() if process.returncode is None}

    async def start(self, name: str, extra_env: dict[str, str] | None = None) -> None:
        """Start one program; `ready` waits for it."""
        assert name not in self.pids, f"{name} runs already"
        program = self._programs[name]
        await self._reap(name)
        process = await spawn(replace(program, env={**program.env, **(extra_env or {})}))
        self._running[name] = process
        lines = self._lines.setdefault(name, deque(maxlen=_LINES_MAX))
        self._readers[name] = asyncio.create_task(_read(process, lines))

    async def ready(self, *names: str, within_s: float = 30.0) -> None:
        """Wait until programs say that they are ready; fails with their log when one has ended."""

        async def look(name: str) -> bool:
            process = self._running[name]
            if process.returncode is not None:
                raise AssertionError(f"{name} ended with code {process.returncode}:\n{self.log(name)[-4000:]}")
            return await self._programs[name].ready()

        async def one(name: str) -> None:
            try:
                await until(lambda: look(name), within_s=within_s, what=f"{name} is ready")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log(name)[-4000:]}") from None

        await asyncio.gather(*(one(name) for name in names))

    async def stop(self, *names: str) -> int | None:
        """End programs as an operator would, and wait; returns the last one's exit code."""
        code = None
        for name in names:
            program, process = self._programs[name], self._running[name]
            await finish(process, program.stop_signal, program.stop_within_s)
            code = process.returncode
            await self._reap(name)
        return code

    async def kill(self, *names: str) -> None:
        """SIGKILL, and wait until they are gone."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            await self.gone(name)

    async def gone(self, name: str, within_s: float = 20.0) -> int:
        """Wait until a process has ended by itself (a failpoint); returns its exit code, negative for a signal."""
        code = await asyncio.wait_for(self._running[name].wait(), within_s)
        await self._reap(name)
        return code

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal; SIGSTOP and SIGCONT make a process silent for a while."""
        self._running[name].send_signal(number)

    def log(self, name: str) -> str:
        """Everything that a program wrote, over all its starts."""
        return "\n".join(self._lines.get(name, ()))

    async def close(self, order: Iterable[str]) -> None:
        """Kill what runs, in an order; stopped processes too."""
        for name in order:
            process = self._running.get(name)
            if process is not None and process.returncode is None:
                await self.kill(name)

    async def _reap(self, name: str) -> None:
        reader = self._readers.pop(name, None)
        if reader is not None:
            await reader


async def _read(process: asyncio.subprocess.Process, lines: deque[str]) -> None:
    assert process.stdout is not None
    while raw := await process.stdout.readline():
        lines.append(raw.decode(errors="replace").rstrip())
