"""`hub.json` in the data folder: how the `hub` command finds the running hub. For our eyes only: it has passwords."""

import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.permissions import OPERATOR, PROVISIONER
from hub_local.credentials import ADMIN, Credentials
from hub_local.folder import DataFolder, read_json, runs, write_private
from hub_local.migrate import OWNERS
from hub_local.servers import Ports
from hub_local.services import Instance
from hub_local.settings import LocalSettings


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process that the supervisor keeps; no pid between two starts."""

    name: str
    pid: int | None
    restarts: int


@dataclass(frozen=True, slots=True)
class HubState:
    """What a running hub says about itself."""

    supervisor_pid: int
    started_at: str
    urls: list[str]
    """HTTP API, one per gateway."""
    ops: dict[str, str]
    """Ops port of each process."""
    nats_url: str
    """As the operator."""
    nats_provision_url: str
    """As the provisioner."""
    nats_monitor_url: str
    database_url: str
    """As the superuser."""
    database_urls: dict[str, str]
    """By role."""
    processes: list[ProcessState] = field(default_factory=list)

    @classmethod
    def of(
        cls, settings: LocalSettings, credentials: Credentials, ports: Ports, instances: list[Instance]
    ) -> "HubState":
        """The state of a hub that is starting."""
        host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host
        return cls(
            supervisor_pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            urls=[f"http://{host}:{one.http_port}" for one in instances if one.http_port is not None],
            ops={one.name: f"http://127.0.0.1:{one.ops_port}" for one in instances},
            nats_url=credentials.nats_url(OPERATOR, ports.nats),
            nats_provision_url=credentials.nats_url(PROVISIONER, ports.nats),
            nats_monitor_url=f"http://127.0.0.1:{ports.nats_http}",
            database_url=credentials.dsn(ADMIN, ports.postgres),
            database_urls={role: credentials.dsn(role, ports.postgres) for role in OWNERS},
        )

    def write(self, folder: DataFolder, processes: list[ProcessState]) -> None:
        """Write the file anew."""
        write_private(folder.state, asdict(self) | {"processes": [asdict(process) for process in processes]})


class NotRunningError(Exception):
    """No hub runs on this folder; the text says what to do."""


def read(data_dir: Path) -> HubState:
    """The state of the hub that runs on a folder.

    Raises:
        NotRunningError: none does.
    """
    document: dict[str, Any] | None = read_json(data_dir / "hub.json")
    if document is None or not runs(document["supervisor_pid"]):
        raise NotRunningError(f"no hub runs on {data_dir.resolve()}: start it with `hub up`, or set HUB_DATA_DIR")
    try:
        document["processes"] = [ProcessState(**process) for process in document["processes"]]
        return HubState(**document)
    except TypeError as error:
        raise NotRunningError(f"the hub on {data_dir.resolve()} was started by another version: restart it") from error
