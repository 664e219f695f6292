"""Access key → principal: a cache in front of schema `identity` that revocation reaches within a second.

A hit costs one HMAC and one look-up. Dropped are entries that a change names, all entries when a change was missed,
and every entry after a minute. Keys that don't exist are remembered for a few seconds, so that a client which repeats
a wrong key does not reach the database each time; and keys that are not cached are read together, one query at a time,
so that a flood of made-up keys does not keep others waiting.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import asyncpg
import msgspec
import structlog

from contracts.errors import ErrorCode, HubError
from contracts.rpc.identity import Role
from gateway.auth import access_keys
from gateway.identity.store import KeyRow
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("auth")
_FRESH_S: Final = 60.0
_REFUSED_S: Final = 5.0
_ENTRIES_MAX: Final = 50_000
_REFUSED_MAX: Final = 10_000
_MISSES_MAX: Final = 1_000
_DATABASE_S: Final = 3.0
_ANSWER_S: Final = 4.0
_USED_EVERY_S: Final = 10.0
_REFUSAL: Final = "No valid access key: send `Authorization: Bearer <your key>`."

LoadKeys = Callable[[Sequence[str]], Awaitable[dict[str, KeyRow]]]
MarkUsed = Callable[[dict[str, datetime]], Awaitable[None]]


class _Read(NamedTuple):
    """What the database said about a key, and the generation of the cache when it was asked."""

    row: KeyRow | None
    generation: int


class Principal(msgspec.Struct, frozen=True):
    """Who calls, with what right, and who pays."""

    user: str
    account: str
    role: Role
    key_id: str
    project: str
    """What a call is attributed to when its request names no project."""
    method: Literal["accessKey"] = "accessKey"


def refused() -> HubError:
    """The one answer to a missing, malformed, unknown, wrong or revoked key: nothing tells which it was."""
    return HubError(ErrorCode.INVALID_API_KEY, _REFUSAL)


class Principals:
    """Principals by digest of their access key.

    Args:
        load: reads keys by id.
        mark_used: writes when keys were last used.
        pepper: secret of the digest.
        clock: monotonic seconds.
    """

    def __init__(
        self, load: LoadKeys, mark_used: MarkUsed, pepper: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._mark_used = mark_used
        self._pepper = pepper
        self._clock = clock
        self._fresh: dict[bytes, tuple[Principal, float]] = {}
        self._by_key: dict[str, bytes] = {}
        self._refused: dict[bytes, float] = {}
        self._wanted: dict[str, asyncio.Future[_Read]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._generation = 0
        self._revision: int | None = None
        self._in_bucket: tuple[int, int] | None = None
        self._used: dict[str, float] = {}
        self._established = False

    @property
    def is_established(self) -> bool:
        """Whether there is an owner; before, no key is known yet."""
        return self._established

    def established(self) -> None:
        """There is an owner: from now on a key that is not found is wrong, and not merely too early."""
        self._established = True

    def digest(self, token: bytes) -> bytes:
        """The cache's key for a token."""
        return access_keys.digest(self._pepper, token)

    def lookup(self, digest: bytes) -> Principal | None:
        """The principal if it is cached and fresh; None says only that `find` has to be asked."""
        entry = self._fresh.get(digest)
        if entry is None or entry[1] < (now := self._clock()):
            return None
        self._used[entry[0].key_id] = now
        return entry[0]

    async def find(self, token: bytes, digest: bytes) -> Principal:
        """The principal of a token that `lookup` does not know.

        Raises:
            HubError: `invalid_api_key`, or `service_unavailable` while the database is away.
        """
        key_id = access_keys.key_id(token.decode("latin-1"))
        if key_id is None or self._refused.get(digest, 0.0) > self._clock():
            raise refused()
        try:
            async with asyncio.timeout(_ANSWER_S):  # giving up a query on a silent database takes far longer
                row, generation = await asyncio.shield(self._row(key_id))
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.warning("key not read", error=type(error).__name__)
            raise HubError(
                ErrorCode.SERVICE_UNAVAILABLE, "Keys cannot be checked right now; try again.", retry_after_s=2
            ) from error
        fits = row is not None and hmac.compare_digest(row.digest, digest) and not row.revoked
        principal = Principal(row.user, row.account, row.role, row.id, project=row.id) if row and fits else None
        if principal is None and not self._established:
            raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "The hub is starting; try again.", retry_after_s=1)
        if generation == self._generation:  # a change since then may concern this row: answer, but don't keep
            self._keep(digest, principal)
        if principal is None:
            raise refused()
        return principal

    async def authenticate(self, token: bytes | None) -> Principal:
        """`lookup`, then `find`.

        Raises:
            HubError: `invalid_api_key`, or `service_unavailable` while the database is away.
        """
        if token is None:
            raise refused()
        digest = self.digest(token)
        return self.lookup(digest) or await self.find(token, digest)

    def changed(self, key_ids: Sequence[str], revision: int) -> None:
        """A change of identities: drop these keys, or all when the list is empty or a change may have been missed."""
        self._generation += 1
        self._refused.clear()
        in_order = self._revision is not None and revision == self._revision + 1
        if not key_ids or not in_order:
            self._fresh.clear()
            self._by_key.clear()
        for key_id in key_ids:
            digest = self._by_key.pop(key_id, None)
            if digest is not None:
                self._fresh.pop(digest, None)
        self._revision = revision

    def seen(self, revision: int, written: int) -> None:
        """What stands in the bucket; a revision other than the last one heard of means that a change was missed.

        It may also be lower: then the database was restored from a backup, and nothing cached can be trusted.

        Args:
            revision: the entry's value.
            written: the bucket's own number of the entry, new with each write.
        """
        if (revision, written) == self._in_bucket:
            return
        self._in_bucket = (revision, written)
        if revision != self._revision:
            self.changed((), revision)

    async def write_used(self, every_s: float = _USED_EVERY_S) -> None:
        """Write `last_used_at` of the keys used since, again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.flush_used()

    async def flush_used(self) -> None:
        """Write `last_used_at` now; what the database did not take is kept for the next time."""
        if not self._used:
            return
        used, self._used = self._used, {}
        now, clock = time.time(), self._clock()
        try:
            await self._mark_used({key: datetime.fromtimestamp(now - (clock - at), UTC) for key, at in used.items()})
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.warning("last use of keys not written", keys=len(used), error=type(error).__name__)
            self._used = used | self._used

    def _row(self, key_id: str) -> "asyncio.Future[_Read]":
        """The next read of a key; one that has begun already is not joined, a change may have come since."""
        future = self._wanted.get(key_id)
        if future is None:
            if len(self._wanted) >= _MISSES_MAX:
                raise HubError(ErrorCode.OVERLOADED, "Too many unknown keys at once; try again.", retry_after_s=1)
            future = self._wanted[key_id] = asyncio.get_running_loop().create_future()
            if self._reader is None:
                self._reader = asyncio.create_task(self._read_wanted())
        return future

    async def _read_wanted(self) -> None:
        """Read what is wanted, all at once, until nothing is."""
        try:
            while self._wanted:
                await self._read_batch()
        finally:
            self._reader = None
            _fail(self._wanted, RuntimeError("reading keys ended"))  # only after a bug or at the end is any left
            self._wanted = {}

    async def _read_batch(self) -> None:
        wanted, self._wanted = self._wanted, {}
        generation = self._generation
        failure: Exception = RuntimeError("reading keys ended")
        rows: dict[str, KeyRow] | None = None
        try:
            async with asyncio.timeout(_DATABASE_S):
                rows = await self._load(list(wanted))
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            failure = error
        finally:
            if rows is None:
                _fail(wanted, failure)
            else:
                for key_id, future in wanted.items():
                    future.set_result(_Read(rows.get(key_id), generation))

    def _keep(self, digest: bytes, principal: Principal | None) -> None:
        now = self._clock()
        if principal is None:
            _make_room(self._refused, _REFUSED_MAX)
            self._refused[digest] = now + _REFUSED_S
            return
        if len(self._fresh) >= _ENTRIES_MAX:
            oldest = next(iter(self._fresh))
            self._by_key.pop(self._fresh.pop(oldest)[0].key_id, None)
        self._fresh[digest] = (principal, now + _FRESH_S)
        self._by_key[principal.key_id] = digest
        self._used[principal.key_id] = now


def _fail(wanted: dict[str, asyncio.Future[_Read]], failure: Exception) -> None:
    for future in wanted.values():
        future.set_exception(failure)
        future.exception()  # nobody may be waiting any more


def _make_room(entries: dict[bytes, float], limit: int) -> None:
    if len(entries) >= limit:
        del entries[next(iter(entries))]
