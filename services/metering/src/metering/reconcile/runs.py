"""Runs of the checks: one at a time in the whole hub, in the background, with what they found kept in the books."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from nats.errors import Error as NatsError

from contracts.errors import ErrorCode, HubError
from contracts.ids import first_call_id_at, new_call_id
from contracts.rpc.reconcile import ReconcileStart, ReconcileStarted
from metering import metrics
from metering.payment_kit.look_up import EventList
from metering.pricing import PricingError
from metering.reconcile import closings
from metering.reconcile.charges import charges
from metering.reconcile.check import FIRST_ID, Connection, Difference, Found, Window, text
from metering.reconcile.checks import IN_SNAPSHOT, WITH_BUS
from metering.reconcile.payments import payment_kit
from metering.reconcile.session import connect
from metering.reconcile.stream import BusView
from runtime.postgres import UNKNOWN_OUTCOME, Pool
from runtime.stream_pages import StreamReadError

LOCK: Final = 7_201_190_511_361
_log = structlog.get_logger("reconcile")
_LOCK_TRIES: Final = 40
_LOCK_PAUSE_S: Final = 0.05
_BEFORE: Final = timedelta(minutes=10)
_LONGEST_CALL: Final = timedelta(days=1)
_UNDER_WAY: Final = "select id from metering.reconciliation where state = 'running' order by started_at desc limit 1"
_LOST: Final = "update metering.reconciliation set state = 'lost', finished_at = now() where state = 'running'"
_NEW: Final = "insert into metering.reconciliation (id, scope, started_by, bus_from) values ($1, $2, $3, $4)"
_PROGRESS: Final = "update metering.reconciliation set progress = $2 where id = $1"
_LAST_RUN: Final = (
    "select started_at from metering.reconciliation where state = 'done' and scope in ('all', 'recent')"
    " order by started_at desc limit 1"
)
_LAST_WITH_PAYMENT_KIT: Final = (
    "select started_at from metering.reconciliation where state = 'done' and scope in ('all', 'recent')"
    ' and comparisons @> \'[{"check": "payment_kit", "not_compared": ""}]\' order by started_at desc limit 1'
)
"""A run in which Payment Kit was away does not count: what was reported before it is still to be looked for."""
_LAST_CLOSED: Final = "select max(day) from metering.closing"
_MARK: Final = "select below_ms from metering.open_mark"
_ACCEPTED: Final = "select id from metering.difference_accepted where id = any ($1)"
_DIFFERENCES: Final = """
insert into metering.difference (run_id, number, id, name, account, call_id, expected, found, detail, is_repairable)
select $1, u.number, u.id, u.name, u.account, u.call_id, u.expected, u.found, u.detail, u.is_repairable
from unnest($2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::bool[])
    with ordinality as u(id, name, account, call_id, expected, found, detail, is_repairable, number)
"""
_DONE: Final = (
    "update metering.reconciliation set state = 'done', progress = '', comparisons = $2, differences = $3,"
    " accepted = $4, finished_at = clock_timestamp() where id = $1"
)
_FAILED: Final = (
    "update metering.reconciliation set state = 'failed', error = $2, finished_at = clock_timestamp() where id = $1"
)


@dataclass(slots=True)
class Runs:
    """Starts runs in this process."""

    dsn: str
    pool: Pool
    view: BusView
    events: EventList | None
    """Of Payment Kit, where there is one."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, request: ReconcileStart) -> ReconcileStarted:
        """Begin a run, unless one is under way in some process.

        Raises:
            HubError: `service_unavailable`, at the very moment when another run begins or ends.
            asyncpg.PostgresError, OSError, TimeoutError: nothing was started.
        """
        connection = await connect(self.dsn)
        try:
            under_way = await _under_way(connection)
            if under_way is None:
                await connection.execute(_LOST)
                window = await _window(connection, request.scope)
                run_id = new_call_id()
                await connection.execute(_NEW, run_id, request.scope, request.started_by, window.bus_from)
        except BaseException:
            connection.terminate()
            raise
        if under_way is not None:
            connection.terminate()
            return ReconcileStarted(run_id=under_way, already=True)
        task = asyncio.get_running_loop().create_task(self._run(connection, run_id, request.scope, window))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return ReconcileStarted(run_id=run_id, already=False)

    async def stop(self) -> None:
        """Give up what is under way; it counts as lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("comparison broke", exc_info=error)

    async def _run(self, connection: Connection, run_id: str, scope: str, window: Window) -> None:
        """Run the checks; the connection's end gives the lock back."""
        try:
            found = await self._checked(connection, run_id, scope, window)
            await _keep(connection, run_id, scope, found)
            await connection.execute("select pg_advisory_unlock($1)", LOCK)
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError, NatsError, StreamReadError, PricingError) as error:
            _log.warning("comparison failed", run=run_id, error=type(error).__name__, detail=str(error)[:300])
            await self.pool.execute(_FAILED, run_id, f"{type(error).__name__}: {error}"[:500])
        finally:
            connection.terminate()

    async def _checked(self, connection: Connection, run_id: str, scope: str, window: Window) -> list[Found]:
        found: list[Found] = []
        if scope == "closings":
            await self._progress(run_id, "closed days")
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return [await closings.verify(connection)]
        await self._progress(run_id, "charges")
        found.append(await charges(connection, window))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for check in IN_SNAPSHOT:
                await self._progress(run_id, check.__name__)
                found.append(await check(connection, window))
        for with_bus in WITH_BUS:
            await self._progress(run_id, with_bus.__name__)
            found.append(await with_bus(connection, self.view, window))
        if self.events is not None:
            await self._progress(run_id, "payment_kit")
            found.append(await payment_kit(connection, self.events, window))
        return found

    async def _progress(self, run_id: str, what: str) -> None:
        await self.pool.execute(_PROGRESS, run_id, what)


async def _under_way(connection: Connection) -> str | None:
    """The run that holds the lock; None = the lock is ours now."""
    for _ in range(_LOCK_TRIES):
        if await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
            return None
        found = await connection.fetchval(_UNDER_WAY)
        if found is not None:
            return str(found)
        await asyncio.sleep(_LOCK_PAUSE_S)  # the other one is just beginning or ending
    raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "Another comparison is beginning; ask again.")


async def _window(connection: Connection, scope: str) -> Window:
    if scope != "recent":
        return Window(since=None, first_id=FIRST_ID, open_from=FIRST_ID, bus_from=None)
    closed = await connection.fetchval(_LAST_CLOSED)
    since = None if closed is None else datetime(closed.year, closed.month, closed.day, tzinfo=UTC) + timedelta(days=1)
    last_run = await connection.fetchval(_LAST_RUN)
    reported = await connection.fetchval(_LAST_WITH_PAYMENT_KIT)
    return Window(
        since=since,
        first_id=FIRST_ID if since is None else _id_at(since - _LONGEST_CALL),
        open_from=UUID(first_call_id_at(max(await connection.fetchval(_MARK), 0))),
        bus_from=None if last_run is None else last_run - _BEFORE,
        reported_from=None if reported is None else reported - _BEFORE,
    )


def _id_at(at: datetime) -> UUID:
    return UUID(first_call_id_at(int(at.timestamp()) * 1000))


async def _keep(connection: Connection, run_id: str, scope: str, found: Sequence[Found]) -> None:
    differences = [difference for each in found for difference in each.differences or ()]
    accepted = {row["id"] for row in await connection.fetch(_ACCEPTED, [each.id for each in differences])}
    left = [difference for difference in differences if difference.id not in accepted]
    total = sum(each.total for each in found) - (len(differences) - len(left))
    async with connection.transaction():
        await connection.execute(_DIFFERENCES, run_id, *_columns(left))
        comparisons = json.dumps([_comparison(each) for each in found])
        await connection.execute(_DONE, run_id, comparisons, total, len(differences) - len(left))
    if scope != "closings":
        metrics.DIFFERENCES.set(total)
        metrics.NOT_COMPARED.set(sum(bool(each.not_compared) for each in found))
    for each in found:
        if each.not_compared:
            _log.error("not compared", run=run_id, check=each.check, reason=each.not_compared[:300])
    if total:
        names = sorted({difference.check for difference in left})
        _log.error("the books do not agree", run=run_id, scope=scope, differences=total, checks=names)


def _columns(differences: Sequence[Difference]) -> tuple[list[Any], ...]:
    return (
        [each.id for each in differences],
        [each.check for each in differences],
        [_storable(each.account) for each in differences],
        [None if each.call_id is None or not _is_uuid(each.call_id) else each.call_id for each in differences],
        [_storable(each.expected) for each in differences],
        [_storable(each.found) for each in differences],
        [_storable(each.detail) for each in differences],
        [each.is_repairable for each in differences],
    )


def _storable(words: str) -> str:
    """What stands in messages of the bus may have a NUL, which PostgreSQL cannot store."""
    return words.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _is_uuid(words: str) -> bool:
    try:
        UUID(words)
    except ValueError:
        return False
    return True


def _comparison(found: Found) -> dict[str, Any]:
    return {
        "check": found.check,
        "left": found.left,
        "left_count": int(found.left_count),
        "left_sum": text(Decimal(found.left_sum)),
        "right": found.right,
        "right_count": int(found.right_count),
        "right_sum": text(Decimal(found.right_sum)),
        "differences": found.total,
        "not_compared": found.not_compared[:300],
        "note": found.note,
        "memory": found.memory,
    }
