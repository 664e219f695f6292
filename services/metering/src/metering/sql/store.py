"""The statements of the money path, on one connection that is kept for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec

from metering.events import Arrival
from metering.reserve import Asked
from runtime import failpoints
from runtime.postgres import Pool
from runtime.postgres import pool as open_pool

TURN_SETTINGS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # Plans made while the tables are empty are kept: they must go by index from the start.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "random_page_cost": "1.1",
    "statement_timeout": "4000",
    "timezone": "UTC",
}
QUERY_SETTINGS: Final = {"jit": "off", "statement_timeout": "4000", "timezone": "UTC"}
_CONNECT_S: Final = 5.0
_COMMAND_S: Final = 5.0
"""Above the server's own time-out: met only when the server is silent."""
_KNOWN_ACCOUNTS_MAX: Final = 100_000
_TURN: Final = "select * from metering.turn($1, $2, $3, $4, $5, $6, $7, $8)"
_TURN_WITH_OUTBOX: Final = "select * from metering.turn_with_outbox($1, $2, $3, $4, $5, $6, $7, $8)"
_OPEN_ACCOUNTS: Final = (
    "insert into metering.account (id) select a from unnest($1::text[]) a order by a on conflict do nothing"
)
_PARK: Final = (
    "insert into metering.parked (digest, reason, subject, payload, call_id)"
    " select * from unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[], $5::uuid[]) on conflict do nothing"
)


class Settled(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A fact that closed its call, and what the books say about it."""

    arrival: Arrival
    sequence: int
    credits: str
    overrun: str
    written_off: str
    model: str
    user: str
    project: str
    key_id: str
    trace_id: str


class Standing(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A fact that changed nothing: the row was closed before, is held by a later epoch, or is not there."""

    arrival: Arrival
    state: str | None
    """None = no such call."""
    credits: str
    account: str


class Refusal(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A reserve that was not admitted."""

    asked: Asked
    status: str
    other_call_id: str


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What one transaction did; every reserve that is not among the refusals is reserved."""

    settled: list[Settled]
    standing: list[Standing]
    refused: list[Refusal]
    at: datetime
    """The transaction's time."""


@dataclass(slots=True)
class TurnStore:
    """The one connection on which a process settles and reserves. Not for use by two tasks at once."""

    dsn: str
    lease: timedelta
    claim: timedelta
    """How long an Idempotency-Key belongs to its call."""
    with_outbox: bool = False
    """Every charge is also to be reported: to Payment Kit."""
    _kept: "asyncpg.Connection[asyncpg.Record] | None" = None
    _known: set[str] = field(default_factory=set)

    async def turn(self, facts: Sequence[Arrival], asked: Sequence[Asked]) -> TurnResult:
        """Settle and reserve in one transaction; no two of either may name the same call.

        Raises:
            asyncpg.DataError, asyncpg.IntegrityConstraintViolationError: one of the values is unacceptable; nothing
                was written.
            asyncpg.PostgresError, OSError, TimeoutError: nothing is known; everything may be given again.
        """
        for arrival in facts:
            failpoints.hit_with("metering.poison", arrival.payload)
        connection = await self._connection()
        try:
            await self._open_accounts(connection, asked)
            row = await connection.fetchrow(
                _TURN_WITH_OUTBOX if self.with_outbox else _TURN,
                list({arrival.fact.account for arrival in facts} | {call.account for call in asked}),
                [arrival.fact.row for arrival in facts],
                [call.row for call in asked],
                any(call.digest is not None for call in asked),
                min((call.made_ms for call in asked), default=0),
                max((call.made_ms for call in asked), default=0),
                self.lease,
                self.claim,
            )
        except asyncpg.PostgresError as error:
            if not isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError):
                self.discard()
            raise
        except BaseException:
            self.discard()
            raise
        assert row is not None  # noqa: S101 - a function with out parameters gives one row
        return _result(row, facts, asked)

    async def park(self, messages: Sequence[tuple[str, bytes, str, str | None]]) -> None:
        """Keep messages that cannot be settled: (subject, payload, reason, call id); a repeat changes nothing."""
        connection = await self._connection()
        try:
            await connection.execute(
                _PARK,
                [hashlib.sha256(subject.encode() + b"\n" + payload).digest() for subject, payload, _, _ in messages],
                [reason[:1000].replace("\x00", "") for _, _, reason, _ in messages],
                [subject for subject, _, _, _ in messages],
                [payload for _, payload, _, _ in messages],
                [call_id for _, _, _, call_id in messages],
            )
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Throw the connection away: after a doubt, what is on its wire belongs to an unknown statement."""
        if self._kept is not None:
            self._kept.terminate()
            self._kept = None

    async def _connection(self) -> "asyncpg.Connection[asyncpg.Record]":
        """The kept connection. None of a pool's: giving one back after each turn costs a reset, a round trip more."""
        if self._kept is None or self._kept.is_closed():
            self._kept = await asyncpg.connect(
                self.dsn,
                timeout=_CONNECT_S,
                command_timeout=_COMMAND_S,
                server_settings={"application_name": "metering-turn", **TURN_SETTINGS},
            )
        return self._kept

    async def _open_accounts(self, connection: "asyncpg.Connection[asyncpg.Record]", asked: Sequence[Asked]) -> None:
        """Make the accounts of calls that hold nothing, before the turn: inside it, that could deadlock."""
        missing = {call.account for call in asked if call.free_of_charge and call.account not in self._known}
        if not missing:
            return
        await connection.execute(_OPEN_ACCOUNTS, list(missing))
        if len(self._known) > _KNOWN_ACCOUNTS_MAX:
            self._known.clear()
        self._known |= missing


async def query_pool(dsn: str, size: int) -> Pool:
    """The pool of everything that is asked beside the turn."""
    return await open_pool(
        dsn, name="metering", size=size, command_timeout_s=_COMMAND_S, server_settings=QUERY_SETTINGS
    )


def _result(row: asyncpg.Record, facts: Sequence[Arrival], asked: Sequence[Asked]) -> TurnResult:
    settled = [Settled(facts[ord_ - 1], *rest) for ord_, *rest in row["settled"] or ()]
    standing = [
        Standing(facts[ord_ - 1], state, credits_ or "0.0000000000", account or "")
        for ord_, state, credits_, account in row["standing"] or ()
    ]
    refused = [
        Refusal(asked[ord_ - 1], status, "" if other is None else str(other))
        for ord_, status, other in row["refused"] or ()
    ]
    return TurnResult(settled, standing, refused, row["at"])
