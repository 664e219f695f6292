"""Payment Kit's own list of meter events against what the outbox says was reported, account by account.

Each event listed there is held against its row by its identifier, and each row that is marked as sent must be listed.
A recent comparison looks at accounts with new reports, and at a part of all accounts, in turn (`rotation.py`).
Rows are marked after Payment Kit has them, so those marked before the list was read must be in it; events whose row is
not marked yet are under way.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Self
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from contracts.money import ZERO
from metering.payment_kit.amounts import AmountError, to_decimal_text, value_of
from metering.payment_kit.client import PaymentKitError
from metering.payment_kit.look_up import MARGIN_S, EventList
from metering.reconcile.check import DIFFERENCES_MAX, Connection, Difference, Found, Window, text
from metering.reconcile.rotation import LOOKS_MAX, SPAN, Rotation

_NOT_FOUND: Final = 404
_TEXT_MAX: Final = 200
_OURS: Final = re.compile(r"m[cb]_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_ACCOUNTS: Final = """
select p.account, p.did, p.customer_id from metering.payment_account p
where p.account > $1 and ($2::timestamptz is null or exists (
    select 1 from metering.outbox o
    where o.account = p.account and o.state = 'sent' and o.batch is null and o.sent_at >= $2
)) order by p.account limit 200
"""
_FIRST: Final = "select event_at from metering.outbox order by id limit 1"
_SENT: Final = (
    " from metering.outbox where account = $1 and state = 'sent' and batch is null and sent_at <= $2"
    " and ($3::timestamptz is null or sent_at >= $3)"
)
_OLDEST: Final = f"select min(event_at){_SENT}"
_ROWS: Final = f"select identifier, value, sent_at, event_id{_SENT}"
_BY_ID: Final = """
select u.place, o.identifier, o.account, o.state, o.value, o.sent_at, o.batch, l.amount
from unnest($1::uuid[]) with ordinality u(id, place)
    left join metering.outbox o on o.id = u.id
    left join metering.ledger l on l.call_id = u.id
"""
_BY_INDEX: Final = "set local enable_seqscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off"


async def payment_kit(connection: Connection, events: EventList, window: Window) -> Found:
    """Payment Kit has each reported event once, with its value, and none that nobody here knows of."""
    found = Found("payment_kit", "meter events sent", "events at Payment Kit")
    first = await connection.fetchval(_FIRST)
    if first is None:
        return found
    looking = _Looking(connection, events, found, first, await Rotation.read(connection))
    try:
        await looking.recent(window.reported_from)
        if window.reported_from is None:
            looking.rotation.all_at_once()
        else:
            await looking.in_turn()
    except PaymentKitError as error:
        status = f" {error.status}" if error.status else ""
        found.not_compared = f"Payment Kit: {error}{status}; {len(looking.looked)} accounts were compared"
    found.memory = looking.rotation.memory()
    found.note = looking.words(window.reported_from)
    return found


@dataclass(slots=True)
class _Looking:
    """Account after account."""

    connection: Connection
    events: EventList
    found: Found
    first: int
    rotation: Rotation
    looked: set[str] = field(default_factory=set)
    reported: int = 0
    """Accounts that were looked at because of reports."""

    async def recent(self, since: datetime | None) -> None:
        """Accounts with reports since then; None = all, from the first report on.

        Raises:
            PaymentKitError: a list could not be read.
        """
        after = ""
        while accounts := await self.connection.fetch(_ACCOUNTS, after, since):
            for row in accounts:
                await self._look(row, since)
                self.reported += 1
            after = accounts[-1]["account"]

    async def in_turn(self) -> None:
        """Accounts whose last comparison found something, and those whose turn it is.

        Raises:
            PaymentKitError: a list could not be read; that account has to wait for its next turn.
        """
        since = self.rotation.at - SPAN
        for row in await self.rotation.doubtful(self.connection):
            if row["account"] not in self.looked:
                await self._look(row, since)
        due = await self.rotation.due(self.connection)
        pages = 0
        for row in due:
            self.rotation.after = row["account"]
            if row["account"] not in self.looked:
                pages += await self._look(row, since)
            if pages >= LOOKS_MAX:
                break
        if not due:
            self.rotation.ended()

    async def _look(self, row: asyncpg.Record, since: datetime | None) -> int:
        """Compare one account; returns how many pages were read."""
        account = _Account(self.connection, self.found, row["account"], since, self.first)
        await account.compare(self.events, row["customer_id"] or await self.events.customer(row["did"]))
        self.looked.add(row["account"])
        return account.pages

    def words(self, since: datetime | None) -> str:
        """How many accounts were compared, and since when all of them were."""
        if since is None:
            return f"Payment Kit: {len(self.looked)} of {self.rotation.accounts} accounts compared"
        part = f"{self.reported} accounts with new reports, {len(self.looked) - self.reported} others"
        return f"Payment Kit: {part} of {self.rotation.accounts} compared, {self.rotation.words()}"


@dataclass(slots=True)
class _Account:
    connection: Connection
    found: Found
    account: str
    since: datetime | None
    first: int
    """When this hub began to report, Unix seconds: what is older belongs to somebody else."""
    until: datetime = field(init=False)
    seen: dict[str, str] = field(default_factory=dict)
    """Payment Kit's id of the event with an identifier."""
    taken: set[str] = field(default_factory=set)
    """Ids of all events that were read; some are listed again while others come."""
    pages: int = 0
    """Read so far."""

    async def compare(self, events: EventList, customer: str) -> None:
        """Hold the account's list against its rows.

        Raises:
            PaymentKitError: the list could not be read.
        """
        self.until = await self.connection.fetchval("select clock_timestamp()")
        start = self.first - MARGIN_S
        if self.since is not None:
            oldest = await self.connection.fetchval(_OLDEST, self.account, self.until, self.since)
            begun = max(int(self.since.timestamp()), self.first)
            start = (begun if oldest is None else min(begun, oldest)) - MARGIN_S
        await self._read(events, customer, events.meters.event_name, start)
        missing = await self._not_seen()
        if missing:  # a list that moves while it is read, or the meter of an earlier unit
            for event_name in events.meters.event_names:
                await self._read(events, customer, event_name, start)
            missing = [row for row in missing if row["identifier"] not in self.seen]
        for row in missing:
            event = _Event(row["event_id"], row["identifier"], row["value"])
            expected = f"{event.identifier} {text(row['value'])}"
            what = f"sent at {row['sent_at']:%Y-%m-%d %H:%M:%S}Z, answered as {event.id or 'an event without an id'}"
            self._add("payment_missing", event, expected, "none", f"{what}; Payment Kit does not list it")

    async def _read(self, events: EventList, customer: str, event_name: str, start: int) -> None:
        try:
            async for page in events.pages(customer, event_name, start):
                await self._take(page)
        except PaymentKitError as error:
            if error.status != _NOT_FOUND:
                raise
            events.meters.forget()
            await events.meters.get()  # it is Payment Kit that answers, so it is the customer whom it does not know

    async def _take(self, page: list[dict[str, Any]]) -> None:
        self.pages += 1
        fresh: list[_Event] = []
        for raw in page:
            event = _Event.read(raw)
            known = self.seen.setdefault(event.identifier, event.id)
            if known != event.id:
                self._twice(event, known)
            elif event.id not in self.taken:
                fresh.append(event)
            self.taken.add(event.id)
        async with self.connection.transaction(readonly=True):
            await self.connection.execute(_BY_INDEX)
            rows = await self.connection.fetch(_BY_ID, [event.row_id for event in fresh])
        rows.sort(key=lambda row: int(row["place"]))
        for event, row in zip(fresh, rows, strict=True):
            self._hold_against(event, row)

    def _hold_against(self, event: "_Event", row: asyncpg.Record) -> None:
        if row["identifier"] != event.identifier or row["account"] != self.account or row["batch"] is not None:
            self._unknown(event, row)
            return
        if row["state"] != "sent":
            return  # under way, or parked: then the outbox' own comparison names it
        if row["sent_at"] <= self.until and (self.since is None or row["sent_at"] >= self.since):
            self._count(event)
        if event.value != row["value"]:
            expected = f"{event.identifier} {text(row['value'])}"
            what = "the value there is another one; it is not overwritten: the repair parks the row with an alert"
            self._add("payment_value", event, expected, event.words, what)

    def _unknown(self, event: "_Event", row: asyncpg.Record) -> None:
        self._count(event)
        if row["identifier"] is None and row["amount"] is not None and event.identifier.startswith("mc_"):
            expected = f"{event.identifier} {text(row['amount'])}"
            self._add("payment_row", event, expected, event.words, "the outbox has no row of this charge")
        else:
            why = "no charge of this account was reported so"
            self._add("payment_extra", event, "none", event.words, f"{why}; {self._giving_back(event)}")

    def _twice(self, event: "_Event", known: str) -> None:
        if event.id in self.taken:
            return
        self._count(event)
        what = f"applied as {known} and as {event.id}; {self._giving_back(event)}"
        self._add("payment_twice", event, f"{event.identifier} once", event.words, what)

    def _giving_back(self, event: "_Event") -> str:
        """The command that gives back what Payment Kit took: the same id each time, so it gives once."""
        if event.value is None or event.value <= 0:
            return "its value is no amount"
        grant_id = uuid5(NAMESPACE_URL, f"payment-kit:{event.id}")
        amount = to_decimal_text(event.value)
        return f"to give it back: hub credits grant {self.account} {amount} --category adjustment --id {grant_id}"

    async def _not_seen(self) -> list[asyncpg.Record]:
        """Rows that were marked before the list was read and are not in it; counts the account's rows."""
        missing: list[asyncpg.Record] = []
        async with self.connection.transaction(readonly=True):
            await self.connection.execute(_BY_INDEX)
            async for row in self.connection.cursor(_ROWS, self.account, self.until, self.since, prefetch=500):
                self.found.left_count += 1
                self.found.left_sum += row["value"]
                if row["identifier"] not in self.seen and len(missing) <= DIFFERENCES_MAX:
                    missing.append(row)
        return missing

    def _count(self, event: "_Event") -> None:
        self.found.right_count += 1
        self.found.right_sum += event.value or ZERO

    def _add(self, check: str, event: "_Event", expected: str, found: str, detail: str) -> None:
        is_call = event.row_id is not None and event.identifier.startswith("mc_")
        call_id = str(event.row_id) if is_call else None
        self.found.add(Difference(check, self.account, call_id, expected, found, detail))


@dataclass(frozen=True, slots=True)
class _Event:
    """What matters of an event as Payment Kit lists it, or of a row."""

    id: str
    identifier: str
    value: Decimal | None
    """None: it is no amount."""

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        payload = raw.get("payload")
        try:
            value = value_of(payload.get("value") if isinstance(payload, dict) else None)
        except AmountError:
            value = None
        return cls(str(raw.get("id"))[:_TEXT_MAX], str(raw.get("identifier"))[:_TEXT_MAX], value)

    @property
    def row_id(self) -> UUID | None:
        """Of the outbox; None = the identifier is not of our form."""
        match = _OURS.fullmatch(self.identifier)
        return None if match is None else UUID(match[1])

    @property
    def words(self) -> str:
        return f"{self.identifier} {'no amount' if self.value is None else to_decimal_text(self.value)}"
