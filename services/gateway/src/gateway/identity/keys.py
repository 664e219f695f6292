"""Making, listing and revoking access keys; every change is in the audit log and announced to all gateways."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from contracts.errors import ErrorCode, HubError
from contracts.rpc.identity import KeyCreate, KeyCreated, KeysCreate, KeyView, Role
from gateway.auth import access_keys
from gateway.identity import store
from runtime.postgres import Pool

Announce = Callable[[Sequence[str], int], Awaitable[None]]
Welcome = Callable[[str], Awaitable[None]]
"""Gives an account that was never opened its welcome grant."""
OpenAccounts = Callable[[Sequence[str], Decimal | None], Awaitable[None]]
"""Accounts and credits for each; None = the configured welcome grant."""
_LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of schema `identity`.

    Attributes:
        announce: tells every gateway which keys changed, after the commit.
    """

    pool: Pool
    pepper: bytes
    announce: Announce

    async def create(self, request: KeyCreate, who: str, welcome: Welcome | None = None) -> KeyCreated:
        """Make one key; its user too, with the key's role, when unknown or not named.

        Args:
            request: what to make.
            who: for the audit log.
            welcome: welcomes the user, before anything is made: nobody who has a key lacks the grant.

        Raises:
            HubError: `invalid_request`, the user's DID has no form that could be one; or what `welcome` raises.
        """
        did = _checked_did(request.user) if request.user is not None else access_keys.new_user_did()
        if welcome is not None:
            await welcome(await self._account(did))
        key = access_keys.new_access_key()
        async with self.pool.acquire() as connection, connection.transaction():
            account = await store.user_account(connection, did)
            if account is None:
                account = did
                await store.insert_users(connection, [store.NewUser(did, account, request.role)])
                await store.audit(connection, who, "user.created", did, role=request.role)
            await store.insert_keys(connection, [self._row(key, did, request.role, request.name, who)])
            await store.audit(connection, who, "key.created", key.id, user=did, role=request.role)
            revision = await store.next_revision(connection)
        await self.announce([key.id], revision)
        return KeyCreated(key_id=key.id, user=did, account=account, role=request.role, key=key.text)

    async def create_many(self, request: KeysCreate, who: str, open_accounts: OpenAccounts) -> list[KeyCreated]:
        """Make many users with one key each. Their accounts are opened first, so that no key lacks one.

        Raises:
            HubError: metering refused or is away; nothing was made but, at most, accounts that nobody knows.
        """
        made = [
            KeyCreated(key_id=key.id, user=did, account=did, role=request.role, key=key.text)
            for key, did in ((access_keys.new_access_key(), access_keys.new_user_did()) for _ in range(request.count))
        ]
        credits_each = None if request.welcome_credits is None else Decimal(request.welcome_credits)
        await open_accounts([one.account for one in made], credits_each)
        async with self.pool.acquire() as connection, connection.transaction():
            await store.insert_users(connection, [store.NewUser(one.user, one.account, one.role) for one in made])
            rows = [self._row(access_keys.AccessKey(one.key_id, one.key), one.user, one.role, "", who) for one in made]
            await store.insert_keys(connection, rows)
            await store.audit(connection, who, "keys.created", made[0].key_id, count=len(made), role=request.role)
            revision = await store.next_revision(connection)
        await self.announce([], revision)
        return made

    async def listed(self, user: str | None) -> list[KeyView]:
        """Keys of a user, or of all, newest first, at most 1,000."""
        rows = await store.listed_keys(self.pool, user, _LISTED_MAX)
        return [
            KeyView(
                key_id=row.id,
                user=row.user,
                role=row.role,
                name=row.name,
                created_at=row.created_at.isoformat(),
                revoked_at=_iso(row.revoked_at),
                last_used_at=_iso(row.last_used_at),
            )
            for row in rows
        ]

    async def revoke(self, key_id: str, who: str) -> None:
        """Revoke a key; announced again when it was revoked before, for a change whose announcement got lost.

        Raises:
            HubError: `not_found`.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            revoked = await store.revoke_key(connection, key_id)
            if revoked is None:
                raise HubError(ErrorCode.NOT_FOUND, "There is no such key.", param="key_id")
            if revoked:
                await store.audit(connection, who, "key.revoked", key_id)
            revision = await store.next_revision(connection)
        await self.announce([key_id], revision)

    async def _account(self, did: str) -> str:
        """Who pays for a user; a new one pays for itself."""
        async with self.pool.acquire() as connection:
            return await store.user_account(connection, did) or did

    def _row(self, key: access_keys.AccessKey, user: str, role: Role, name: str, who: str) -> store.NewKey:
        return store.NewKey(key.id, access_keys.digest(self.pepper, key.text.encode()), user, role, name, who)


def _checked_did(text: str) -> str:
    did = text.rpartition(":")[2] if text.startswith("did:") else text
    if not did or not did.isascii() or not did.isalnum():
        raise HubError(ErrorCode.INVALID_REQUEST, "A user is named by a DID, e.g. z1m1SfAbFipc…", param="user")
    return did


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
