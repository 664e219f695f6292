"""Runs the conversion that is open: at rest first, then grant by grant, by one process at a time.

Whoever sees a conversion that nobody runs takes it over, so one that died goes on by itself. All grants of the older
unit are read again and again until nothing is left to do: ended ones may leave the list, or move in it.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import asyncpg
import structlog

from contracts.rpc.grant_conversion import PROBLEMS_MAX
from metering.payment_kit import grant_list
from metering.payment_kit.circuit import backoff_s
from metering.payment_kit.client import PaymentKitError
from metering.payment_kit.conversion import KNOWN_S, GrantConversions, connected
from metering.payment_kit.grant_list import ListedGrant
from metering.payment_kit.grant_units import is_open
from metering.payment_kit.moves import IN_DOUBT, TOO_LITTLE, Moved, Mover
from metering.payment_kit.outbox import TransientErrors

_log = structlog.get_logger("grant_conversion")
LOOK_S: Final = 0.5
"""How often a process looks whether a conversion is to be run."""
_LOCK: Final = 7_201_190_511_363
_AT_ONCE: Final = 8
_SLACK_S: Final = 5.0
_WAITING: Final = "select id from metering.grant_conversion where state = 'running' order by started_at limit 1"
_ROW: Final = "select * from metering.grant_conversion where id = $1 and state = 'running'"
_REST: Final = """
select clock_timestamp() - c.started_at > make_interval(secs => $2) as is_known,
    (select count(*) from metering.account where held > 0) as running,
    (select count(*) from metering.outbox where state = 'pending' and batch is null) as pending,
    (select count(*) from metering.outbox where state = 'parked') as parked
from metering.grant_conversion c where c.id = $1
"""
_DONE: Final = """
select count(*) filter (where ended_at is not null) as migrated,
    coalesce(sum(before) filter (where ended_at is not null), 0) as before,
    coalesce(sum(after) filter (where ended_at is not null), 0) as after,
    count(*) filter (where ended_at is not null or tried_at is not null) as begun
from metering.moved_grant where conversion = $1
"""
_PROGRESS: Final = """
update metering.grant_conversion
set total = $2, migrated = $3, skipped = $4, errors = $5, before = $6, after = $7, problems = $8 where id = $1
"""
_END: Final = """
update metering.grant_conversion
set state = $2, error = $3, finished_at = case when $2 in ('finished', 'failed') then now() end
where id = $1 and state = 'running'
"""
_KEEP_UNIT: Final = "update metering.payment_control set unit = 'USD' where unit is null"


class _GaveUpError(Exception):
    """Why a run ends before all is done."""


@dataclass(slots=True)
class _Run:
    """One conversion in this process' hands."""

    row: asyncpg.Record
    connection: "asyncpg.Connection[asyncpg.Record]"
    mover: Mover
    until: float = 0.0
    """Monotonic: when we give up, unless something succeeds before."""
    seen: set[str] = field(default_factory=set)
    problems: dict[str, Moved] = field(default_factory=dict)
    """Of the last look at each grant."""
    tried: dict[str, Moved] = field(default_factory=dict)
    """In a dry run: what would be moved."""

    def lives(self) -> None:
        """Something succeeded: wait as long again for the next."""
        self.until = time.monotonic() + self.row["wait_s"]

    def left(self, problem: str) -> int:
        """Grants with this problem."""
        return sum(one.problem == problem for one in self.problems.values())


@dataclass(frozen=True, slots=True)
class GrantConversionRuns:
    """The worker of one process."""

    conversions: GrantConversions

    async def run(self) -> None:
        """Take what nobody runs, until cancelled."""
        while True:
            try:
                if await self.conversions.pool.fetchval(_WAITING) is not None:
                    async with self._alone() as connection:
                        if connection is not None:
                            await self._take(connection)
            except TransientErrors as error:
                _log.warning("conversion waits", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def _alone(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record] | None]":
        """A connection while which nobody else converts; None when somebody does. Its end gives the turn back."""
        async with connected(self.conversions.settings.database_url.get_secret_value()) as connection:
            yield connection if await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK) else None

    async def _take(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        waiting = await connection.fetchval(_WAITING)
        row = None if waiting is None else await connection.fetchrow(_ROW, waiting)
        if row is None:
            return
        _log.warning("conversion runs", conversion=str(row["id"]), dry_run=row["dry_run"])
        error = ""
        try:
            await self._carry_out(row, connection)
        except PaymentKitError as gave_up:
            error = f"Payment Kit: {_words(gave_up)}"[:500]
        except _GaveUpError as gave_up:
            error = str(gave_up)
        if error:
            _log.warning("conversion gave up", conversion=str(row["id"]), reason=error)
        await self._end(row, connection, error)

    async def _end(self, row: asyncpg.Record, connection: "asyncpg.Connection[asyncpg.Record]", error: str) -> None:
        """What becomes of it: calls are admitted again, unless the unit is to be changed and something was moved."""
        changes_unit = row["from_unit"] != "USD" and not row["dry_run"]
        done = await connection.fetchrow(_DONE, row["id"])
        assert done is not None  # noqa: S101 - an aggregate gives one row
        state = "failed" if error and not done["begun"] else "moved" if changes_unit else "finished"
        async with connection.transaction():
            await connection.execute(_END, row["id"], state, error)
            if state == "finished" and not row["dry_run"]:
                await connection.execute(_KEEP_UNIT)
        _log.warning("conversion ended", conversion=str(row["id"]), state=state, migrated=done["migrated"])

    async def _carry_out(self, row: asyncpg.Record, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """All of it.

        Raises:
            _GaveUpError, PaymentKitError: before the end.
        """
        settings = self.conversions.settings
        in_doubt = timedelta(seconds=settings.payment_kit_timeout_s + settings.payment_kit_server_s)
        old, new = await self.conversions.both()
        mover = Mover(self.conversions.kit, connection, row["id"], row["price"], old, new, in_doubt)
        run = _Run(row, connection, mover)
        run.lives()
        if not row["dry_run"]:
            await _at_rest(run)
        tries = 0
        while True:
            try:
                moved = await self._sweep(run)
                tries = 0
            except PaymentKitError as error:
                if not error.transient or time.monotonic() > run.until:
                    raise
                tries += 1
                _log.warning("conversion waits", reason=error.reason, status=error.status)
                await asyncio.sleep(max(error.retry_after_s, backoff_s(tries, settings.payment_kit_backoff_max_s)))
                continue
            if moved:
                run.lives()
            elif not run.left(IN_DOUBT):
                return
            elif time.monotonic() > run.until + in_doubt.total_seconds() + _SLACK_S:
                raise _GaveUpError(f"Payment Kit does not say what became of {run.left(IN_DOUBT)} new grants")
            else:
                await asyncio.sleep(LOOK_S)

    async def _sweep(self, run: _Run) -> int:
        """Look at every grant once; returns how many were moved.

        Raises:
            PaymentKitError: Payment Kit is away.
        """
        moved, now = 0, int(time.time())
        run.problems.clear()
        async for page in grant_list.pages(self.conversions.kit, {"currency_id": run.mover.old.currency_id}):
            if any(not grant.currency_id or not grant.customer_id for grant in page):
                raise PaymentKitError("no_grant", detail="a grant without customer or currency")
            ours = [grant for grant in page if grant.currency_id == run.mover.old.currency_id]
            run.seen.update(grant.id for grant in ours)
            await run.mover.found_ended(ours)
            for one in await _all_moved(run, [grant for grant in ours if is_open(grant, now)]):
                if one.problem and one.problem != TOO_LITTLE:
                    run.problems[one.grant.id] = one
                elif not one.problem and run.row["dry_run"]:
                    run.tried[one.grant.id] = one
                else:
                    moved += not one.problem
            await _write_progress(run)
        await _write_progress(run)
        return moved


async def _at_rest(run: _Run) -> None:
    """Wait until every metering refuses reserves, no call runs and every charge is reported.

    Raises:
        _GaveUpError: they still run, or a report is parked.
    """
    while True:
        row = await run.connection.fetchrow(_REST, run.row["id"], KNOWN_S)
        assert row is not None  # noqa: S101 - it is there
        if row["parked"]:
            raise _GaveUpError(f"{row['parked']} reports are parked: `hub payments status` has them")
        if row["is_known"] and not row["running"] and not row["pending"]:
            return
        if time.monotonic() > run.until and row["is_known"]:
            raise _GaveUpError(
                f"calls of {row['running']} accounts still run, and {row['pending']} charges are not reported yet"
            )
        await asyncio.sleep(LOOK_S)


async def _all_moved(run: _Run, grants: Sequence[ListedGrant]) -> list[Moved]:
    """What became of these grants, or would become of them.

    Raises:
        PaymentKitError: Payment Kit is away.
    """
    if run.row["dry_run"]:
        values = [(grant, run.mover.worth(grant)) for grant in grants if not grant.moved_to]
        return [Moved(grant, value, value.problem) for grant, value in values]
    by_customer: dict[str, list[ListedGrant]] = defaultdict(list)
    for grant in grants:
        by_customer[grant.customer_id].append(grant)
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one(customer: str, theirs: list[ListedGrant]) -> list[Moved]:
        async with at_once:
            try:
                return await run.mover.customer(customer, theirs)
            except PaymentKitError as error:
                if error.transient:
                    raise
                return [Moved(grant, run.mover.worth(grant), _words(error)[:200]) for grant in theirs]

    done = await asyncio.gather(*(one(*each) for each in by_customer.items()), return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [moved for result in done if not isinstance(result, BaseException) for moved in result]


def _words(error: PaymentKitError) -> str:
    return f"{error.reason} {error.status or ''} {error.detail}".strip()


async def _write_progress(run: _Run) -> None:
    done = await run.connection.fetchrow(_DONE, run.row["id"])
    assert done is not None  # noqa: S101 - an aggregate gives one row
    migrated, before, after = done["migrated"], done["before"], done["after"]
    if run.row["dry_run"]:
        migrated = len(run.tried)
        before = sum((one.value.before for one in run.tried.values()), before)
        after = sum((one.value.after for one in run.tried.values()), after)
    problems = [
        {"grant_id": one.grant.id, "customer_id": one.grant.customer_id, "problem": one.problem}
        for one in list(run.problems.values())[:PROBLEMS_MAX]
    ]
    errors = len(run.problems)
    total = max(len(run.seen), migrated + errors)
    skipped = total - migrated - errors
    await run.connection.execute(
        _PROGRESS, run.row["id"], total, migrated, skipped, errors, before, after, json.dumps(problems)
    )
