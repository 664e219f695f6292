"""Usage events on the bus against the ledger.

"Sent up to" is read before the events: whatever it covers was stored by then. Events stored before the check began
were settled before, so their ledger rows are there.
"""

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

import asyncpg
import msgspec

from contracts.cloudevent import UsageEvent
from contracts.ids import is_call_id
from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, text
from metering.reconcile.session import BY_INDEX
from metering.reconcile.stream import BusView
from runtime.stream_pages import Stored

_EVENT: Final = msgspec.json.Decoder(UsageEvent)
_BOOKED: Final = """
select u.place, l.account, l.acct_seq, l.amount
from unnest($1::uuid[]) with ordinality u(id, place) left join metering.ledger l on l.call_id = u.id
"""
_SENT: Final = """
select l.account, min(l.acct_seq) as first, max(l.acct_seq) as last, count(*) as calls
from metering.ledger l join metering.usage_sent s on s.account = l.account
where l.at >= $1 and l.acct_seq <= s.seq group by l.account
"""
_ROWS: Final = """
select l.call_id, l.account, l.acct_seq, l.amount from metering.ledger l
where l.account = $1 and l.acct_seq between $2 and $3 and l.at >= $4 order by l.acct_seq limit 1000
"""


@dataclass(slots=True)
class Numbers:
    """A set of numbers that come nearly in order, kept as ranges."""

    ranges: list[list[int]] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Add one; repeats are allowed."""
        if self.ranges:
            first, last = self.ranges[-1]
            if first <= number <= last:
                return
            if number == last + 1:
                self.ranges[-1][1] = number
                return
        self.ranges.append([number, number])

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """What of `first` to `last` is not there."""
        gaps = []
        for low, high in sorted((low, high) for low, high in self.ranges):
            if low > first:
                gaps.append((first, min(low - 1, last)))
            first = max(first, high + 1)
            if first > last:
                return gaps
        return [*gaps, (first, last)]


@dataclass(slots=True)
class _Events:
    connection: Connection
    stored_before: int
    """Events behind this sequence may belong to calls settled since."""
    found: Found
    seen: dict[str, Numbers] = field(default_factory=dict)

    async def take(self, page: list[Stored]) -> None:
        events: list[tuple[UsageEvent, Decimal]] = []
        for message in page:
            try:
                event = _EVENT.decode(message.payload)
                amount = Decimal(event.data.credits)
            except (msgspec.DecodeError, InvalidOperation) as error:
                what = f"message {message.sequence} is no usage event: {str(error)[:150]}"
                self.found.add(Difference("event_unreadable", "", None, "a usage event", str(message.sequence), what))
                continue
            self.seen.setdefault(event.data.account, Numbers()).add(event.data.sequence)
            if message.sequence <= self.stored_before:
                if is_call_id(event.data.call_id):
                    events.append((event, amount))
                else:
                    self._orphan(event)
        async with self.connection.transaction(readonly=True):
            await self.connection.execute(BY_INDEX)
            rows = await self.connection.fetch(_BOOKED, [event.data.call_id for event, _ in events])
        rows.sort(key=lambda row: int(row["place"]))
        for (event, amount), row in zip(events, rows, strict=True):
            self._compare(event, amount, row)

    def _compare(self, event: UsageEvent, amount: Decimal, row: asyncpg.Record) -> None:
        data = event.data
        if row["account"] is None:
            self._orphan(event)
            return
        self.found.left_count += 1
        self.found.left_sum += amount
        self.found.right_count += 1
        self.found.right_sum += row["amount"]
        said, booked = (data.account, data.sequence), (row["account"], row["acct_seq"])
        if said != booked:
            expected, found = f"{booked[0]} #{booked[1]}", f"{said[0]} #{said[1]}"
            what = "the event has another account or number than the ledger row"
            self.found.add(Difference("event_differs", row["account"], data.call_id, expected, found, what))
        if amount != row["amount"]:
            what = "the event has another amount than the ledger row"
            self.found.add(
                Difference("event_amount", row["account"], data.call_id, text(row["amount"]), text(amount), what)
            )

    def _orphan(self, event: UsageEvent) -> None:
        data = event.data
        amount = f"#{data.sequence} {data.credits[:60]}"
        what = "a usage event without a ledger row"
        self.found.add(Difference("event_orphan", data.account, data.call_id[:100], "no event", amount, what))


async def usage_events(connection: Connection, view: BusView, window: Window) -> Found:
    """Each event says what its ledger row says, and each row that counts as sent has its event."""
    span = await view.usage_span()
    since = span.complete_from if window.bus_from is None else max(span.complete_from, window.bus_from)
    expected = await connection.fetch(_SENT, since)
    reading = _Events(connection, span.last, Found("usage_events", "usage events", "ledger rows"))
    async for page in view.usage_events(window.bus_from):
        await reading.take(page)
    for row in expected:
        numbers = reading.seen.get(row["account"], Numbers())
        for first, last in numbers.gaps(row["first"], row["last"]):
            for missing in await connection.fetch(_ROWS, row["account"], first, last, since):
                what = f"number {missing['acct_seq']} counts as sent, but is not on the bus"
                difference = Difference(
                    "event_missing",
                    row["account"],
                    str(missing["call_id"]),
                    text(missing["amount"]),
                    "none",
                    what,
                )
                reading.found.add(difference)
            if reading.found.total > DIFFERENCES_MAX:
                return reading.found
    return reading.found
