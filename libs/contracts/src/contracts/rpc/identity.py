"""Questions to gateway about users and access keys."""

from typing import Final, Literal

from pydantic import Field

from contracts.rpc.envelope import Message

SERVICE: Final = "gateway"
KEY_CREATE: Final = "key_create"
KEYS_CREATE: Final = "keys_create"
KEY_LIST: Final = "key_list"
KEY_REVOKE: Final = "key_revoke"

Role = Literal["owner", "admin", "member", "guest"]


class KeyCreate(Message):
    """Make an access key for a user; the user is made when unknown."""

    user: str | None = Field(None, max_length=200)
    """User DID; a new one when absent."""
    role: Role = "member"
    name: str = Field("", max_length=200)


class KeyCreated(Message):
    """The only time the key's text is shown."""

    key_id: str
    user: str
    account: str
    role: Role
    key: str


class KeysCreate(Message):
    """Many users with one key each, for load tests and migrations."""

    count: int = Field(gt=0, le=10_000)
    role: Role = "member"
    welcome_credits: str | None = None
    """Granted to each account; None = the configured welcome grant."""


class KeysCreated(Message):
    """One per user."""

    keys: tuple[KeyCreated, ...]


class KeyList(Message):
    """Keys of a user, or of all."""

    user: str | None = None


class KeyView(Message):
    """A key without its text."""

    key_id: str
    user: str
    role: Role
    name: str
    created_at: str
    revoked_at: str | None
    last_used_at: str | None


class KeyPage(Message):
    """Newest first."""

    keys: tuple[KeyView, ...]


class KeyRevoke(Message):
    """Revoke by id; revoking twice is no error."""

    key_id: str


class IdentityChanged(Message):
    """Published on `identity.changed`: these keys are no longer what a cache says (empty = drop all)."""

    key_ids: tuple[str, ...]
    revision: int
