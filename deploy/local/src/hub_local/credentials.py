"""Generated passwords: one per NATS user and database role, made at the first start, kept for the owner's eyes only."""

import secrets
from dataclasses import asdict, dataclass
from typing import Final

from contracts.permissions import USERS
from hub_local.folder import DataFolder, read_json, write_private
from hub_local.migrate import OWNERS

ADMIN: Final = "postgres"
"""The superuser of the embedded PostgreSQL."""
DATABASE: Final = "hub"


@dataclass(frozen=True, slots=True)
class Credentials:
    """All secrets of the embedded hub."""

    nats: dict[str, str]
    """Password by NATS user."""
    postgres: dict[str, str]
    """Password by database role."""
    key_pepper: str
    """Key of the digests under which access keys are stored."""

    def nats_url(self, user: str, port: int) -> str:
        """URL of the server for one user."""
        return f"nats://{user}:{self.nats[user]}@127.0.0.1:{port}"

    def dsn(self, role: str, port: int, database: str = DATABASE) -> str:
        """URL of a database for one role."""
        return f"postgresql://{role}:{self.postgres[role]}@127.0.0.1:{port}/{database}"


def obtain(folder: DataFolder) -> Credentials:
    """Read the passwords; make those that are missing."""
    file = folder.root / "credentials.json"
    known = read_json(file) or {}
    made = Credentials(
        nats={user: known.get("nats", {}).get(user) or _password() for user in USERS},
        postgres={role: known.get("postgres", {}).get(role) or _password() for role in (ADMIN, *OWNERS)},
        key_pepper=known.get("key_pepper") or secrets.token_hex(32),
    )
    if asdict(made) != known:
        write_private(file, asdict(made))
    return made


def _password() -> str:
    return secrets.token_urlsafe(24)
