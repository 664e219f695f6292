"""The data folder: one owner at a time, ports that stay the same, files only for us."""

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_LEFTOVERS_WITHIN_S: Final = 15.0


class TakenError(Exception):
    """A folder or a port belongs to somebody else; the text says to whom and what to do."""


class DataFolder:
    """Everything that the embedded hub remembers."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._lock: int | None = None

    @property
    def postgres(self) -> Path:
        """Folder of PostgreSQL."""
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        """Folder of NATS."""
        return self.root / "nats"

    @property
    def state(self) -> Path:
        """Connection data of the running hub, for the `hub` command."""
        return self.root / "hub.json"

    @property
    def lock_fd(self) -> int:
        """The locked descriptor; both servers inherit it, so the lock ends only with the last of them."""
        if self._lock is None:
            raise RuntimeError("the folder is not locked")
        return self._lock

    async def lock(self) -> None:
        """Become the owner.

        Raises:
            TakenError: another hub runs on this folder.
        """
        for folder in (self.root, self.postgres, self.nats):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LEFTOVERS_WITHIN_S
        while not _try_lock(descriptor):
            owner = int(os.pread(descriptor, 20, 0).strip() or 0)
            if owner and runs(owner):
                os.close(descriptor)
                raise TakenError(
                    f"another hub runs on {self.root} (pid {owner}); stop it, or set HUB_DATA_DIR to another folder"
                )
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise TakenError(f"servers of an earlier hub still run on {self.root}; stop them first")
            await asyncio.sleep(0.05)  # its servers are shutting down after their supervisor was killed
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._lock = descriptor

    def unlock(self) -> None:
        """Let the folder go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def __aenter__(self) -> Self:
        await self.lock()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unlock()

    def ports(self, names: Iterable[str]) -> dict[str, int]:
        """A loopback port for each name, the same at every start; a port that a stranger took is replaced."""
        file = self.root / "ports.json"
        known: dict[str, int] = read_json(file) or {}
        held: list[socket.socket] = []
        wanted = tuple(names)
        for name in wanted:
            if name not in known or not is_free("127.0.0.1", known[name]):
                probe = socket.socket()
                probe.bind(("127.0.0.1", 0))
                held.append(probe)  # held until all are chosen, so that no port is chosen twice
                known[name] = probe.getsockname()[1]
        for probe in held:
            probe.close()
        write_private(file, known)
        return {name: known[name] for name in wanted}


def read_json(file: Path) -> Any:
    """The document in a file, or None when there is none."""
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None


def write_private(file: Path, document: object) -> None:
    """Write JSON that only we may read, whole or not at all."""
    fresh = file.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump(document, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)


def is_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def runs(pid: int) -> bool:
    """Whether a process with this pid works; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return True  # no /proc on this system
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
