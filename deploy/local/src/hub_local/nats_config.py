"""The configuration of the embedded NATS server: loopback, one user per service, streams on disk."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from contracts.permissions import USERS, Permissions


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the server keeps its streams and where it listens."""

    store: str
    port: int
    http_port: int
    host: str = "127.0.0.1"


def write(file: Path, listen: Listen, passwords: dict[str, str], *, sync_always: bool) -> None:
    """Write the file, readable by its owner only."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(render(listen, passwords, sync_always=sync_always))


def render(listen: Listen, passwords: dict[str, str], *, sync_always: bool) -> str:
    """The text of the configuration."""
    sync = "always" if sync_always else '"2m"'  # a bare 2m would be the number two million
    users = "\n".join(_user(name, passwords[name], permissions) for name, permissions in USERS.items())
    return f"""server_name: hub
listen: "{listen.host}:{listen.port}"
http: "{listen.host}:{listen.http_port}"
max_payload: 8MB
max_pending: 64MB
write_deadline: "10s"
jetstream {{
  store_dir: {json.dumps(listen.store)}
  max_memory_store: 512MB
  max_file_store: 64GB
  sync_interval: {sync}
}}
accounts {{
  HUB {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
}}
"""


def _user(name: str, password: str, permissions: Permissions) -> str:
    responses = ', allow_responses: { max: 1, expires: "1m" }' if permissions.answers else ""
    return (
        f"      {{ user: {json.dumps(name)}, password: {json.dumps(password)}, permissions: {{"
        f" publish: {_subjects(permissions.publish)}, subscribe: {_subjects(permissions.subscribe)}{responses} }} }}"
    )


def _subjects(names: tuple[str, ...]) -> str:
    return f"{{ allow: {json.dumps(list(names))} }}"
