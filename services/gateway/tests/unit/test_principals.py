import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import pytest

from contracts.errors import ErrorCode, HubError
from gateway.auth import access_keys
from gateway.auth.principals import Principals
from gateway.identity.store import KeyRow

PEPPER = b"a pepper for tests"


@dataclass
class Books:
    """The database as the cache sees it."""

    rows: dict[str, KeyRow] = field(default_factory=dict)
    reads: int = 0
    used: dict[str, datetime] = field(default_factory=dict)
    failure: Exception | None = None
    gate: asyncio.Event | None = None

    async def load(self, key_ids: Sequence[str]) -> dict[str, KeyRow]:
        self.reads += 1
        found = {key_id: self.rows[key_id] for key_id in key_ids if key_id in self.rows}
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return found

    async def mark_used(self, used: dict[str, datetime]) -> None:
        if self.failure is not None:
            raise self.failure
        self.used |= used

    def add(self, key: access_keys.AccessKey, *, revoked: bool = False) -> None:
        digest = access_keys.digest(PEPPER, key.text.encode())
        self.rows[key.id] = KeyRow(key.id, digest, "z1user", "z1account", "member", "", revoked)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def principals(books: Books, clock: Clock) -> Principals:
    principals = Principals(books.load, books.mark_used, PEPPER, clock)
    principals.established()
    return principals


async def _refusal(principals: Principals, token: bytes | None) -> HubError:
    with pytest.raises(HubError) as caught:
        await principals.authenticate(token)
    return caught.value


async def test_a_known_key_is_read_once_and_then_found_without_waiting(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    principal = await principals.authenticate(key.text.encode())
    assert (principal.user, principal.account, principal.role) == ("z1user", "z1account", "member")
    assert (principal.key_id, principal.project) == (key.id, key.id)
    assert principals.lookup(principals.digest(key.text.encode())) == principal
    assert await principals.authenticate(key.text.encode()) == principal
    assert books.reads == 1


async def test_missing_malformed_unknown_wrong_and_revoked_keys_get_the_same_answer(
    books: Books, principals: Principals
) -> None:
    revoked, foreign, unknown = (access_keys.new_access_key() for _ in range(3))
    books.add(revoked, revoked=True)
    other_pepper = access_keys.digest(b"another pepper", foreign.text.encode())
    books.rows[foreign.id] = KeyRow(foreign.id, other_pepper, "z1user", "z1user", "owner", "", revoked=False)
    tokens = [None, b"nonsense", b"\xff\xfe", unknown.text.encode(), foreign.text.encode(), revoked.text.encode()]
    refusals = [await _refusal(principals, token) for token in tokens]
    assert {(error.code, error.message, error.status) for error in refusals} == {
        (ErrorCode.INVALID_API_KEY, refusals[0].message, 401)
    }
    assert books.reads == 3


async def test_an_unknown_key_reaches_the_database_once_in_a_while(
    books: Books, principals: Principals, clock: Clock
) -> None:
    key = access_keys.new_access_key()
    for _ in range(5):
        await _refusal(principals, key.text.encode())
    assert books.reads == 1
    clock.now += 6
    books.add(key)
    await principals.authenticate(key.text.encode())
    assert books.reads == 2


async def test_a_key_made_after_it_was_refused_works_at_once(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    await _refusal(principals, key.text.encode())
    books.add(key)
    principals.changed([key.id], 1)
    await principals.authenticate(key.text.encode())


async def test_before_there_is_an_owner_a_key_is_too_early_and_not_wrong(books: Books) -> None:
    starting = Principals(books.load, books.mark_used, PEPPER)
    key = access_keys.new_access_key()
    assert (await _refusal(starting, key.text.encode())).code is ErrorCode.SERVICE_UNAVAILABLE
    books.add(key)
    assert (await starting.authenticate(key.text.encode())).key_id == key.id
    starting.established()
    other = access_keys.new_access_key()
    assert (await _refusal(starting, other.text.encode())).code is ErrorCode.INVALID_API_KEY


async def test_many_at_once_share_one_read(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    found = await asyncio.gather(*(principals.authenticate(key.text.encode()) for _ in range(50)))
    assert len(set(found)) == 1
    assert books.reads == 1


async def test_a_flood_of_made_up_keys_is_read_in_few_queries(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    flood = [asyncio.create_task(_refusal(principals, access_keys.new_access_key().text.encode())) for _ in range(500)]
    assert (await principals.authenticate(key.text.encode())).key_id == key.id
    assert {error.code for error in await asyncio.gather(*flood)} == {ErrorCode.INVALID_API_KEY}
    assert books.reads <= 2


async def test_too_many_unknown_keys_at_once_are_503(books: Books, principals: Principals) -> None:
    books.gate = asyncio.Event()
    tasks = [asyncio.create_task(_refusal(principals, access_keys.new_access_key().text.encode())) for _ in range(1200)]
    while not books.reads:  # noqa: ASYNC110 - a turn of the loop each
        await asyncio.sleep(0)
    books.gate.set()
    codes = [error.code for error in await asyncio.gather(*tasks)]
    assert codes.count(ErrorCode.OVERLOADED) == 200
    assert codes.count(ErrorCode.INVALID_API_KEY) == 1000


async def test_a_bug_while_reading_reaches_the_caller(books: Books, principals: Principals) -> None:
    books.failure = KeyError("a bug")
    with pytest.raises(RuntimeError):
        await principals.authenticate(access_keys.new_access_key().text.encode())
    reader = principals._reader
    assert reader is None or isinstance((await asyncio.gather(reader, return_exceptions=True))[0], KeyError)


async def test_a_waiter_that_leaves_does_not_take_the_others_along(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    books.gate = asyncio.Event()
    leaving = asyncio.create_task(principals.authenticate(key.text.encode()))
    staying = asyncio.create_task(principals.authenticate(key.text.encode()))
    while not books.reads:  # noqa: ASYNC110 - a turn of the loop each
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    books.gate.set()
    assert (await staying).key_id == key.id


@pytest.mark.parametrize(
    "failure",
    [OSError("refused"), TimeoutError(), asyncpg.CannotConnectNowError("starting"), asyncpg.UndefinedTableError("?")],
)
async def test_a_database_that_is_away_is_503_and_never_401(
    books: Books, principals: Principals, failure: Exception
) -> None:
    key = access_keys.new_access_key()
    books.failure = failure
    error = await _refusal(principals, key.text.encode())
    assert (error.code, error.status) == (ErrorCode.SERVICE_UNAVAILABLE, 503)
    assert error.retry_after_s
    books.failure = None
    books.add(key)
    await principals.authenticate(key.text.encode())


async def test_a_database_that_cannot_even_be_left_is_503_in_seconds(
    books: Books, principals: Principals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.auth.principals._ANSWER_S", 0.05)
    books.gate = asyncio.Event()  # as a driver does that waits for a silent server to confirm the cancellation
    error = await _refusal(principals, access_keys.new_access_key().text.encode())
    assert error.code is ErrorCode.SERVICE_UNAVAILABLE
    books.gate.set()


async def test_a_cached_key_needs_no_database_until_it_expires(
    books: Books, principals: Principals, clock: Clock
) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    await principals.authenticate(key.text.encode())
    books.failure = OSError("away")
    clock.now += 59
    await principals.authenticate(key.text.encode())
    clock.now += 2
    assert (await _refusal(principals, key.text.encode())).code is ErrorCode.SERVICE_UNAVAILABLE


async def test_a_change_drops_its_keys_only(books: Books, principals: Principals) -> None:
    first, second = access_keys.new_access_key(), access_keys.new_access_key()
    principals.seen(7, 1)
    for key in (first, second):
        books.add(key)
        await principals.authenticate(key.text.encode())
    principals.changed([first.id], 8)
    assert principals.lookup(principals.digest(first.text.encode())) is None
    assert principals.lookup(principals.digest(second.text.encode())) is not None


@pytest.mark.parametrize("revision", [9, 10, 3], ids=["a gap", "two gaps", "a restored database"])
async def test_a_missed_change_drops_everything(books: Books, principals: Principals, revision: int) -> None:
    key = access_keys.new_access_key()
    principals.seen(7, 1)
    books.add(key)
    await principals.authenticate(key.text.encode())
    principals.seen(7, 1)
    assert principals.lookup(principals.digest(key.text.encode())) is not None
    principals.seen(revision, 2)
    assert principals.lookup(principals.digest(key.text.encode())) is None


async def test_a_rewritten_bucket_is_noticed_though_its_revision_was_seen_before(
    books: Books, principals: Principals
) -> None:
    key = access_keys.new_access_key()
    principals.seen(2, 1)
    principals.changed([], 1)
    books.add(key)
    await principals.authenticate(key.text.encode())
    principals.seen(2, 5)
    assert principals.lookup(principals.digest(key.text.encode())) is None


async def test_a_heard_change_is_not_taken_for_a_missed_one(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    principals.seen(7, 1)
    principals.changed(["z1other"], 8)
    books.add(key)
    await principals.authenticate(key.text.encode())
    principals.seen(8, 2)
    assert principals.lookup(principals.digest(key.text.encode())) is not None


async def test_a_row_read_while_it_changed_is_not_kept(books: Books, principals: Principals) -> None:
    key = access_keys.new_access_key()
    books.add(key)
    books.gate = asyncio.Event()
    reading = asyncio.create_task(principals.authenticate(key.text.encode()))
    while not books.reads:  # noqa: ASYNC110 - a turn of the loop each
        await asyncio.sleep(0)
    books.add(key, revoked=True)
    principals.changed([key.id], 1)
    books.gate.set()
    await reading
    assert principals.lookup(principals.digest(key.text.encode())) is None
    assert (await _refusal(principals, key.text.encode())).code is ErrorCode.INVALID_API_KEY


async def test_last_use_is_written_in_batches_and_survives_an_outage(books: Books, principals: Principals) -> None:
    keys = [access_keys.new_access_key() for _ in range(3)]
    for key in keys:
        books.add(key)
        await principals.authenticate(key.text.encode())
    books.failure = OSError("away")
    await principals.flush_used()
    assert not books.used
    books.failure = None
    await principals.flush_used()
    assert set(books.used) == {key.id for key in keys}
