"""The first start: an owner with a key and a welcome grant. Safe to run on many gateways at once, and again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg
import structlog

from contracts.errors import ERRORS, ErrorCode, HubError, Retry
from contracts.ids import welcome_grant_id
from gateway.auth import access_keys
from gateway.identity import store
from gateway.identity.keys import Announce
from runtime.postgres import UNKNOWN_OUTCOME, Pool

_log = structlog.get_logger("bootstrap")
_WHO: Final = "bootstrap"
_RETRY_S: Final = 0.5
_RETRY_MAX_S: Final = 10.0

GrantWelcome = Callable[[str, str], Awaitable[None]]
"""Account and grant id."""


async def bootstrap(
    pool: Pool,
    pepper: bytes,
    given: str | None,
    announce: Announce,
    grant: GrantWelcome,
    show: Callable[[str], None],
    established: Callable[[], None],
) -> None:
    """Make the owner, then see that the welcome grant arrives; waits for database and metering.

    Args:
        pool: schema `identity`.
        pepper: secret of the key digest.
        given: text of the owner's key; None = one is made, if there is no owner yet.
        announce: tells every gateway of a new key.
        grant: gives an account its welcome grant.
        show: prints a key that was made; called at most once per installation.
        established: told when there is an owner; before, an unknown key may be the one about to be stored.
    """
    while True:
        try:
            owner, made = await _owner(pool, pepper, given, announce)
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.info("waiting for the database", error=type(error).__name__)
            await asyncio.sleep(_RETRY_S)
            continue
        break
    established()
    if made is not None:
        show(made)
    await _grant_welcome(owner.account, grant)


async def _grant_welcome(account: str, grant: GrantWelcome) -> None:
    delay = _RETRY_S
    while True:
        try:
            await grant(account, welcome_grant_id(account))
        except HubError as error:
            if error.code is ErrorCode.CONFLICT:
                return  # given at an earlier start, when HUB_WELCOME_CREDITS was another amount
            if ERRORS[error.code].retry is Retry.NO:
                _log.error("welcome grant refused", error=str(error.code), reason=error.message)
                return
        else:
            return
        await asyncio.sleep(delay)
        delay = min(delay * 2, _RETRY_MAX_S)


async def _owner(pool: Pool, pepper: bytes, given: str | None, announce: Announce) -> tuple[store.Owner, str | None]:
    """The first owner, made if there is none; and the text of the key that was made for it, not of a given one."""
    async with pool.acquire() as connection, connection.transaction():
        await store.lock_bootstrap(connection)
        owner = await store.first_owner(connection)
        is_new = owner is None
        if owner is None:
            did = access_keys.new_user_did()
            owner = store.Owner(did, did)
            await store.insert_users(connection, [store.NewUser(did, did, "owner")])
            await store.audit(connection, _WHO, "user.created", did, role="owner")
        made = access_keys.new_access_key() if is_new and given is None else None
        text = made.text if made is not None else given
        revision = None if text is None else await _ensure_key(connection, pepper, text, owner)
    if revision is not None:
        await announce([], revision)
    return owner, None if made is None else made.text


async def _ensure_key(connection: store.Connection, pepper: bytes, text: str, owner: store.Owner) -> int | None:
    """Insert the owner's key unless it is there; returns the new revision of identities, None when nothing changed."""
    key_id = access_keys.key_id(text)
    if key_id is None:
        raise ValueError("settings let only well-formed keys through")
    digest = access_keys.digest(pepper, text.encode())
    row = (await store.key_rows(connection, [key_id])).get(key_id)
    if row is not None:
        if row.revoked:
            _log.warning("the bootstrap key is revoked", key_id=key_id)
        elif row.digest != digest:
            _log.error("the bootstrap key was stored under another HUB_KEY_PEPPER", key_id=key_id)
        return None
    key = store.NewKey(key_id, digest, owner.did, "owner", "bootstrap", _WHO)
    await store.insert_keys(connection, [key])
    await store.audit(connection, _WHO, "key.created", key_id, user=owner.did, role="owner")
    return await store.next_revision(connection)
