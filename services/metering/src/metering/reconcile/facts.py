"""Facts on the bus against the calls in the books.

Facts are read after asking up to where they are acknowledged: a fact that is acknowledged was settled before, so it
must be in the books; one that is not is still under way.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import asyncpg

from contracts import subjects
from contracts.events import CallState
from metering.events import Fact, UnreadableFactError, read
from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, text
from metering.reconcile.session import BY_INDEX
from metering.reconcile.stream import BusView
from runtime.stream_pages import Stored

_IDS_MAX: Final = 5_000_000
"""Beyond it nobody looks for calls without a fact; the memory is needed for calls."""
_LOOK_FURTHER: Final = timedelta(days=1)
_CALLS: Final = """
select f.place, c.state, c.account, c.epoch, c.hold, c.credits + coalesce(j.amount, 0) as credits, c.overrun, l.cost,
    l.call_id is not null as is_late
from unnest($1::uuid[], $2::int[]) with ordinality f(id, epoch, place)
    left join metering.model_call c on c.id = f.id
    left join metering.late_completion l on l.call_id = f.id and l.epoch = f.epoch
    left join lateral (
        select sum(a.amount) as amount from metering.adjustment a where a.call_id = f.id and a.target = 'call'
    ) j on true
"""
_PARKED: Final = "select digest from metering.parked where digest = any ($1)"
_SETTLED: Final = (
    "select l.call_id, l.account, l.amount from metering.ledger l where l.at >= $1 and l.at < $2 order by l.at"
)


@dataclass(slots=True)
class _Facts:
    """What was read so far."""

    connection: Connection
    acknowledged: int
    found: Found
    seen: set[int] = field(default_factory=set)
    """Calls of which some fact is there."""
    booked: set[int] = field(default_factory=set)
    """Those among them whose settlement has been counted."""

    async def take(self, page: list[Stored]) -> None:
        """Compare one page."""
        facts: list[tuple[Stored, Fact]] = []
        unread: list[Stored] = []
        for message in page:
            if message.subject.startswith(subjects.CALLS_REQUESTED):
                continue
            try:
                fact = read(message.subject, message.payload)
            except UnreadableFactError:
                unread.append(message)
                continue
            facts.append((message, fact))
            if len(self.seen) < _IDS_MAX:
                self.seen.add(_key(fact.call_id))
        epochs = [fact.epoch for _, fact in facts]
        async with self.connection.transaction(readonly=True):
            await self.connection.execute(BY_INDEX)
            rows = await self.connection.fetch(_CALLS, [fact.call_id for _, fact in facts], epochs)
        rows.sort(key=lambda row: int(row["place"]))
        lost = []
        for (message, fact), row in zip(facts, rows, strict=True):
            if row["state"] is None or row["account"] != fact.account:
                lost.append((message, fact, "no such call"))
            elif row["state"] != CallState.PROCESSING:
                self._compare(message, fact, row)
            elif fact.epoch == row["epoch"]:
                lost.append((message, fact, "the call is still open"))
        await self._look_among_parked(lost, unread)

    def _compare(self, message: Stored, fact: Fact, row: asyncpg.Record) -> None:
        cost: Decimal = fact.cost
        epoch: int = fact.epoch
        if fact.state == CallState.SUCCESS and row["state"] == CallState.FAILED:
            if message.sequence <= self.acknowledged and (not row["is_late"] or row["cost"] != cost):
                what = "a success that came too late is not kept for review as it came"
                self._add(fact, "fact_late", text(cost), text(row["cost"]), what)
            return
        key = _key(fact.call_id)
        if fact.state != row["state"] or epoch != row["epoch"] or key in self.booked:
            return
        self.booked.add(key)
        charge: Decimal = min(cost, row["hold"]) if fact.state == CallState.SUCCESS else Decimal(0)
        self.found.left_count += 1
        self.found.right_count += 1
        self.found.left_sum += charge
        self.found.right_sum += row["credits"]
        if charge != row["credits"] or (fact.state == CallState.SUCCESS and cost - charge != row["overrun"]):
            what = f"the fact costs {text(cost)}, the hold was {text(row['hold'])}, overrun {text(row['overrun'])}"
            self._add(fact, "fact_amount", text(charge), text(row["credits"]), what)

    async def _look_among_parked(self, lost: list[tuple[Stored, Fact, str]], unread: list[Stored]) -> None:
        looked = [*(message for message, _, _ in lost), *unread]
        digests = [hashlib.sha256(m.subject.encode() + b"\n" + m.payload).digest() for m in looked]
        kept = {bytes(row["digest"]) for row in await self.connection.fetch(_PARKED, digests)} if looked else set()
        for place, (message, digest) in enumerate(zip(looked, digests, strict=True)):
            if digest in kept or message.sequence > self.acknowledged:
                continue
            if place < len(lost):
                _, fact, why = lost[place]
                what = f"the fact is acknowledged, but {why}"
                self._add(fact, "fact_unsettled", "settled or parked", fact.state, what)
            else:
                what = f"{message.subject}, message {message.sequence}: neither readable nor parked"
                self.found.add(Difference("fact_unsettled", "", None, "settled or parked", digest.hex()[:16], what))

    def _add(self, fact: Fact, check: str, expected: str, found: str, detail: str) -> None:
        self.found.add(Difference(check, fact.account, fact.call_id, str(expected), found, detail))


async def facts(connection: Connection, view: BusView, window: Window) -> Found:
    """Each acknowledged fact is settled at what it costs, and each settled call has a fact."""
    span = await view.facts_span()
    acknowledged = await view.settled_up_to()
    now: datetime = await connection.fetchval("select now()")
    read_from = window.bus_from
    reading = _Facts(connection, acknowledged, Found("facts", "facts on the bus", "settled calls"))
    async for page in view.facts(read_from):
        await reading.take(page)
    complete_from = span.complete_from if read_from is None else max(span.complete_from, read_from)
    missing = await _without_fact(connection, complete_from, now, reading.seen)
    for earlier in _earlier(read_from):  # what waited long to be settled was stored long before
        if not missing:
            break
        again = _Facts(connection, 0, Found("", "", ""))
        async for page in view.facts(earlier):
            await again.take(page)
        missing = [row for row in missing if row["call_id"].int & _MASK not in again.seen]
    for row in missing[:DIFFERENCES_MAX]:
        what = "the call is settled, but no fact of it is on the bus"
        reading.found.add(
            Difference("fact_missing", row["account"], str(row["call_id"]), "a fact", text(row["amount"]), what)
        )
    return reading.found


async def _without_fact(
    connection: Connection, since: datetime, until: datetime, seen: set[int]
) -> list[asyncpg.Record]:
    if len(seen) >= _IDS_MAX:
        return []
    missing: list[asyncpg.Record] = []
    async with connection.transaction(readonly=True):
        async for row in connection.cursor(_SETTLED, since, until, prefetch=500):
            if row["call_id"].int & _MASK not in seen:
                missing.append(row)
                if len(missing) > DIFFERENCES_MAX:
                    break
    return missing


def _earlier(read_from: datetime | None) -> list[datetime | None]:
    return [] if read_from is None else [read_from - _LOOK_FURTHER, None]


_MASK: Final = 2**62 - 1


def _key(call_id: str) -> int:
    """The random half of a call id: all that tells two calls apart, at half the memory."""
    return int(call_id.replace("-", "")[16:], 16) & _MASK
