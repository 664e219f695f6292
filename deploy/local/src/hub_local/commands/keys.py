"""`hub keys`: make, see and revoke access keys."""

from typing import Annotated, Literal

from cyclopts import Parameter

from contracts.rpc import identity
from contracts.rpc.envelope import Empty
from hub_local.commands import show
from hub_local.commands.session import ask, first_owner, run


def create(
    *,
    user: str | None = None,
    owner: Annotated[bool, Parameter(negative="")] = False,
    role: Literal["owner", "admin", "member", "guest"] | None = None,
    name: str = "",
) -> None:
    """Make an access key and show it, this once.

    Args:
        user: DID of an existing user; a new user is made when absent.
        owner: for the user whom the first start made.
        role: what the key may do; `member`, and with --owner `owner`.
        name: a word for yourself.
    """

    async def made() -> identity.KeyCreated:
        wanted = identity.KeyCreate(
            user=await first_owner() if owner else user, role=role or ("owner" if owner else "member"), name=name
        )
        return await ask(identity.SERVICE, identity.KEY_CREATE, wanted, identity.KeyCreated)

    key = run(made())
    show.record({"key": key.key, "key id": key.key_id, "user": key.user, "account": key.account, "role": key.role})


def list_keys(*, user: str | None = None) -> None:
    """List access keys, newest first, without their text.

    Args:
        user: only this user's.
    """
    page = run(ask(identity.SERVICE, identity.KEY_LIST, identity.KeyList(user=user), identity.KeyPage))
    show.table(
        ("key id", "user", "role", "name", "created", "last used", "revoked"),
        [
            (key.key_id, key.user, key.role, key.name, key.created_at, key.last_used_at or "", key.revoked_at or "")
            for key in page.keys
        ],
    )


def revoke(key_id: str) -> None:
    """Revoke a key on every gateway, within a second.

    Args:
        key_id: as `hub keys list` shows it.
    """
    run(ask(identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id=key_id), Empty))
    print(f"{key_id} is revoked")
