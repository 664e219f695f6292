"""Open calls: raise their holds, renew their leases, find those whose lease has ended.

Source: settle protocol, steps 1, 6 and 12.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import asyncpg
import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts.ids import call_time_ms, first_call_id_at, is_call_id
from contracts.money import CreditsError, checked, parse, rounded
from contracts.rpc.metering import ExtendHold, ExtendReply, RenewLeases, RenewReply
from contracts.rpc.model_calls import StaleCall, StaleCalls, StaleReply
from metering.times import iso_ms
from runtime.bus import Bus, Listener
from runtime.postgres import UNKNOWN_OUTCOME, Pool

_log = structlog.get_logger("leases")
_ENCODE: Final = msgspec.json.Encoder().encode
_EXTEND: Final = msgspec.json.Decoder(ExtendHold)
_RENEW: Final = msgspec.json.Decoder(RenewLeases)
Q = TypeVar("Q")

_RENEW_SQL: Final = "select * from metering.renew($1, $2, $3, $4)"
_RENEWED_AT_ONCE: Final = 256
"""Calls of one transaction: turns of their accounts wait for it."""

_GRACE_MAX_S: Final = 10.0
"""Two renewals of a router at its slowest."""
_SCAN_STEP_MS: Final = 3_600_000
_OVERLAP_MS: Final = 20_000
"""Longer than a reserve may take from the making of its id to its commit, unless it is listed in `skewed_call`."""
_MARK_EVERY_S: Final = 60.0
_NOW_MS: Final = "select floor(extract(epoch from now()) * 1000)::bigint"
_NEXT_ID: Final = "select id from metering.model_call where id >= $1 order by id limit 1"
_MARK: Final = "select below_ms from metering.open_mark"
_MOVE_MARK: Final = "update metering.open_mark set below_ms = $1 where below_ms < $1"
_SCAN: Final = (
    "select id from metering.model_call where id >= $1 and id < $2 and state = 'processing'"
    " union all select call_id from metering.skewed_call"
)
_OPEN: Final = """
select c.id, c.epoch, c.account, c.kind, c.trace_id, c.created_at, c.lease_until < now() as ended
from metering.model_call c where c.id = any ($1) and c.state = 'processing' order by c.lease_until
"""
_FORGET_SKEWED: Final = (
    "delete from metering.skewed_call s using metering.model_call c where c.id = s.call_id and c.state <> 'processing'"
)


def answering(bus: Bus, work: Callable[[bytes], Awaitable[Any]], open_tasks: set[asyncio.Task[None]]) -> Listener:
    """A listener that answers each request in a task of its own; `work` gives the reply."""

    async def answer(reply: bytes, payload: bytes) -> None:
        try:
            bus.send(reply.decode(), _ENCODE(await work(payload)))
        except msgspec.DecodeError as error:
            _log.warning("unreadable request", detail=str(error)[:200])
        except NatsError as error:
            _log.warning("not answered", error=type(error).__name__)

    def listener(_subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        task = asyncio.get_running_loop().create_task(answer(reply, payload))
        open_tasks.add(task)
        task.add_done_callback(open_tasks.discard)

    return listener


@dataclass(slots=True)
class Leases:
    """Questions about open calls."""

    pool: Pool
    lease: timedelta
    wait_s: float
    """Longest wait for the database."""
    _interrupted_at: float = field(default_factory=time.monotonic)
    """When renewals may have gone unheard for the last time: our start, a database or a bus that was away."""
    _open: set[str] = field(default_factory=set)
    """Calls seen open by a scan and not yet seen terminal."""
    _scanned_ms: int | None = None
    _marked_at: float = 0.0
    _scanning: asyncio.Lock = field(default_factory=asyncio.Lock)

    def interrupted(self) -> None:
        """Renewals may have gone unheard until now: leases that ended meanwhile say nothing about their routers yet."""
        self._interrupted_at = time.monotonic()

    async def extend(self, payload: bytes) -> ExtendReply:
        """Raise a hold; refused once the call is no longer processing under this epoch.

        Raises:
            msgspec.DecodeError: no request.
        """
        request = _EXTEND.decode(payload)
        try:
            amount = checked(rounded(parse(request.amount)))
        except CreditsError:
            return ExtendReply(granted=False, reason="invalid")
        if not is_call_id(request.call_id) or "\x00" in request.account:
            return ExtendReply(granted=False, reason="ended")
        try:
            async with asyncio.timeout(self.wait_s):
                answer: str = await self.pool.fetchval(
                    "select metering.extend($1, $2, $3, $4)", request.call_id, request.epoch, request.account, amount
                )
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.warning("extend failed", call_id=request.call_id, error=type(error).__name__)
            return ExtendReply(granted=False, reason="unavailable")
        return ExtendReply(granted=True) if answer == "granted" else ExtendReply(granted=False, reason=answer)

    async def renew(self, payload: bytes) -> RenewReply:
        """All calls of a router, in small transactions. While the database is away nothing is said to have ended.

        Raises:
            msgspec.DecodeError: no request.
        """
        request = _RENEW.decode(payload)
        renewed, ended = 0, list[str]()
        try:
            async with asyncio.timeout(self.wait_s):
                for epoch, calls in _portions(request.calls):
                    row = await self.pool.fetchrow(_RENEW_SQL, calls, epoch, self.lease, request.router)
                    assert row is not None  # noqa: S101 - a function with out parameters gives one row
                    renewed += row["renewed"]
                    ended += map(str, row["ended"] or ())
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            self.interrupted()
            _log.warning("renew failed", calls=len(request.calls), error=type(error).__name__)
            return RenewReply(0, ())
        return RenewReply(renewed, tuple(ended))

    async def stale(self, request: StaleCalls) -> StaleReply:
        """Calls whose lease has ended by PostgreSQL's clock.

        No index leads to them, since settling would have to change it: ids carry their time, so each scan reads on
        from where the last one ended, and what was open there is remembered by id. A new process begins at the mark
        in the database.

        After an interruption nothing counts as stale until every living router has had time to renew: an outage
        longer than a lease would otherwise close all calls that go on.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: ask again later.
        """
        try:
            rows = await self._open_calls()
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError):
            self.interrupted()
            raise
        oldest: datetime | None = min((row["created_at"] for row in rows), default=None)
        grace_s = min(_GRACE_MAX_S, self.lease.total_seconds() / 2)
        heard = time.monotonic() - self._interrupted_at >= grace_s
        return StaleReply(
            calls=tuple(
                StaleCall(
                    call_id=str(row["id"]),
                    epoch=row["epoch"],
                    account=row["account"],
                    kind=row["kind"],
                    trace_id=row["trace_id"],
                )
                for row in rows
                if row["ended"] and heard
            )[: request.limit],
            oldest_open_at=None if oldest is None else iso_ms(oldest),
        )

    async def _open_calls(self) -> "list[asyncpg.Record]":
        async with self._scanning:
            await self._scan()
            rows = await self.pool.fetch(_OPEN, list(self._open))
            self._open = {str(row["id"]) for row in rows}
            await self._move_mark()
        return rows

    async def _scan(self) -> None:
        end: int = await self.pool.fetchval(_NOW_MS) - int(self.lease.total_seconds() * 1000)
        if self._scanned_ms is None:
            self._scanned_ms = min(await self.pool.fetchval(_MARK), end)
        while True:
            start = self._scanned_ms
            if end - start > _SCAN_STEP_MS:
                start = await self._next_ms(start, end)  # hours without a call are skipped, however many
            stop = min(start + _SCAN_STEP_MS, max(end, start))
            low = first_call_id_at(max(start - _OVERLAP_MS, 0))
            for row in await self.pool.fetch(_SCAN, low, first_call_id_at(stop)):
                self._open.add(str(row["id"]))
            self._scanned_ms = stop
            if stop >= end:
                return

    async def _next_ms(self, start: int, end: int) -> int:
        """The time of the first call from a time on, at most `end`."""
        found = await self.pool.fetchval(_NEXT_ID, first_call_id_at(start))
        return end if found is None else min(call_time_ms(str(found)), end)

    async def _move_mark(self) -> None:
        loop = asyncio.get_running_loop()
        if self._scanned_ms is None or loop.time() - self._marked_at < _MARK_EVERY_S:
            return
        self._marked_at = loop.time()
        oldest = min((call_time_ms(call_id) for call_id in self._open), default=self._scanned_ms)
        await self.pool.execute(_MOVE_MARK, min(oldest, self._scanned_ms) - _OVERLAP_MS)
        await self.pool.execute(_FORGET_SKEWED)


def _portions(calls: Iterable[tuple[str, int]]) -> Iterator[tuple[int, list[str]]]:
    """Epoch and calls of each transaction of a renewal, oldest first; each call once."""
    by_epoch: dict[int, set[str]] = {}
    for call_id, epoch in calls:
        if is_call_id(call_id):
            by_epoch.setdefault(epoch, set()).add(call_id)
    for epoch, of_epoch in by_epoch.items():
        ordered = sorted(of_epoch)
        for start in range(0, len(ordered), _RENEWED_AT_ONCE):
            yield epoch, ordered[start : start + _RENEWED_AT_ONCE]
