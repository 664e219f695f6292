"""`hub up` as a user starts it: one supervisor process that a test talks to by signals and files."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from rig.waiting import until


class EmbeddedHub:
    """A supervisor on a data folder; it restarts what dies, as in real life."""

    def __init__(self, data_dir: Path, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._env = env or {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: list[str] = []

    @property
    def output(self) -> str:
        """All that it printed so far."""
        return "\n".join(self._lines)

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    @property
    def key(self) -> str:
        """The owner key that it printed."""
        found = re.search(r"shown only this once:\s+(blocklet-z\w+)", self.output)
        assert found is not None, self.output
        return found[1]

    def state(self) -> dict[str, Any]:
        """What `hub.json` says now."""
        document: dict[str, Any] = json.loads((self.data_dir / "hub.json").read_text())
        return document

    def process(self, name: str) -> dict[str, Any]:
        """Name, pid and restarts of one process."""
        row: dict[str, Any] = next(row for row in self.state()["processes"] if row["name"] == name)
        return row

    async def start(self) -> None:
        """Start it; `ready` or `ended` waits."""
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hub_local.cli", "up",
            env={**keep, "HUB_PORT": "0", "HUB_DB_FAST": "1", **self._env, "HUB_DATA_DIR": str(self.data_dir)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=self.data_dir.parent,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._process))

    async def ready(self, within_s: float = 30.0) -> None:
        """Wait for the ready line."""

        async def look() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, f"hub up ended:\n{self.output}"
            return "AIGNE Hub is ready at" in self.output

        await until(look, within_s=within_s, what="the ready line")

    async def says(self, text: str, within_s: float = 20.0) -> None:
        """Wait until it has printed something."""

        async def look() -> bool:
            return text in self.output

        try:
            await until(look, within_s=within_s, what=f"hub up says {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    async def comes_back(self, name: str, restarts: int, within_s: float = 20.0) -> None:
        """Wait until a process was started again so many times."""

        async def look() -> bool:
            row = self.process(name)
            return row["restarts"] >= restarts and row["pid"] is not None

        await until(look, within_s=within_s, what=f"{name} was restarted")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self, within_s: float = 30.0) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None
        assert self._reader is not None
        code = await asyncio.wait_for(self._process.wait(), within_s)
        await self._reader
        return code

    async def close(self) -> None:
        """Kill it, if it still runs; the kernel takes its children."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self.ended()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while raw := await process.stdout.readline():
            self._lines.append(raw.decode(errors="replace").rstrip())


def seeded(data_dir: Path, template: Path | None) -> Path:
    """A data folder whose database is made already, as after a first start that was never ready."""
    data_dir.mkdir(mode=0o700, parents=True)
    if template is not None:
        shutil.copytree(template / "postgres", data_dir / "postgres", symlinks=True)
        shutil.copy(template / "credentials.json", data_dir / "credentials.json")
    return data_dir
