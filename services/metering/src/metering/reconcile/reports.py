"""What a run found, page by page; and differences that are to stay as they are."""

import json
from typing import Final
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.rpc.envelope import Empty
from contracts.rpc.reconcile import (
    ComparisonView,
    DifferenceView,
    ParkedCount,
    ReconcileAccept,
    ReconcileGet,
    ReconcileReport,
)
from metering.reconcile.rows import PARKED
from metering.reconcile.runs import LOCK
from metering.times import iso_ms
from runtime.postgres import Pool

_RUN: Final = "select * from metering.reconciliation where $1::uuid is null or id = $1 order by started_at desc limit 1"
_ALIVE: Final = (
    "select exists (select 1 from pg_locks where locktype = 'advisory' and objsubid = 1 and granted"
    " and (classid::bigint << 32 | objid::bigint) = $1"
    " and database = (select oid from pg_database where datname = current_database()))"
)
_PAGE: Final = "select * from metering.difference where run_id = $1 and number > $2 order by number limit $3"
_CLOSED: Final = "select day, chain from metering.closing order by day desc limit 1"
_ACCEPT: Final = (
    "insert into metering.difference_accepted (id, reason, accepted_by) values ($1, $2, $3) on conflict do nothing"
)
_KNOWN: Final = "select exists (select 1 from metering.difference where id = $1)"
_REASONS: Final = f"""
with left_over as ({PARKED})
select split_part(reason, ':', 1) as reason, count(*) as parked, min(at) as oldest from left_over group by 1
"""  # noqa: S608 - our own words only
_REPORTS: Final = "select count(*) from metering.outbox where state = 'parked'"


async def get(pool: Pool, request: ReconcileGet) -> ReconcileReport:
    """State of a run, and one page of its differences.

    Raises:
        HubError: `not_found`, also when there was no run yet; `invalid_request`.
    """
    try:
        wanted = None if request.run_id is None else UUID(request.run_id)
    except ValueError as error:
        raise HubError(ErrorCode.INVALID_REQUEST, "`run_id` is a UUID.", param="run_id") from error
    row = await pool.fetchrow(_RUN, wanted)
    if row is None:
        raise HubError(ErrorCode.NOT_FOUND, "There is no such comparison.", param="run_id")
    state = row["state"]
    if state == "running" and not await pool.fetchval(_ALIVE, LOCK):
        again = await pool.fetchrow(_RUN, row["id"])  # it may have ended between the two looks
        row = again if again is not None else row
        state = "lost" if row["state"] == "running" else row["state"]
    page = await pool.fetch(_PAGE, row["id"], request.after, request.limit + 1)
    shown = page[: request.limit]
    closed = await pool.fetchrow(_CLOSED)
    return ReconcileReport(
        run_id=str(row["id"]),
        scope=row["scope"],
        state=state,
        progress=row["progress"],
        error=row["error"],
        started_at=iso_ms(row["started_at"]),
        finished_at=None if row["finished_at"] is None else iso_ms(row["finished_at"]),
        comparisons=tuple(ComparisonView(**each) for each in json.loads(row["comparisons"])),
        differences=row["differences"],
        accepted=row["accepted"],
        page=tuple(_view(each) for each in shown),
        next_after=shown[-1]["number"] if len(page) > len(shown) else None,
        closed_day=None if closed is None else closed["day"].isoformat(),
        closed_chain=None if closed is None else bytes(closed["chain"]).hex(),
    )


async def accept(pool: Pool, request: ReconcileAccept) -> Empty:
    """Let a difference stay.

    Raises:
        HubError: `not_found`; `invalid_request` for a reason that cannot be stored.
    """
    if "\x00" in request.reason or "\x00" in request.accepted_by or "\x00" in request.difference_id:
        raise HubError(ErrorCode.INVALID_REQUEST, "NUL cannot be stored.", param="reason")
    if not await pool.fetchval(_KNOWN, request.difference_id):
        raise HubError(ErrorCode.NOT_FOUND, "No comparison has found this difference.", param="difference_id")
    await pool.execute(_ACCEPT, request.difference_id, request.reason, request.accepted_by)
    return Empty()


async def parked_count(pool: Pool, _request: Empty) -> ParkedCount:
    """Parked facts that nobody has accepted."""
    rows = await pool.fetch(_REASONS)
    oldest = min((row["oldest"] for row in rows), default=None)
    return ParkedCount(
        parked=sum(row["parked"] for row in rows),
        oldest_at=None if oldest is None else iso_ms(oldest),
        reasons={row["reason"]: row["parked"] for row in rows},
        reports=await pool.fetchval(_REPORTS),
    )


def _view(row: asyncpg.Record) -> DifferenceView:
    command = f"--repair {row['id']}" if row["is_repairable"] else f'--accept {row["id"]} --reason "…"'
    return DifferenceView(
        number=row["number"],
        id=row["id"],
        check=row["name"],
        account=row["account"],
        call_id=None if row["call_id"] is None else str(row["call_id"]),
        expected=row["expected"],
        found=row["found"],
        detail=row["detail"],
        repair=f"hub reconcile {command}",
    )
