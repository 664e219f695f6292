"""Notices: a balance became low, or nothing is left, once per crossing; credits were given, or have ended.

All are CloudEvents on stream CREDIT, with a text for the account's owner. The latter are booked with the entry itself,
by a trigger.

Turns know nothing of it: after the commit the accounts that paid are remembered, and a moment later one statement
compares them with the threshold and books each crossing (`metering.credit_watch`). What is booked is published under an
id that is constant for the crossing, until the stream has stored it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import asyncpg
import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import subjects
from contracts.cloudevent import CONTENT_TYPE, CreditEvent, credit_event
from contracts.events import CreditNotice, grant_event_id
from contracts.money import to_text
from contracts.rpc.metering import ReserveStatus
from contracts.streams import CREDIT
from metering import metrics
from metering.ledger import words
from metering.sql.store import Refusal, TurnResult
from metering.times import iso_ms
from runtime.bus import Bus
from runtime.postgres import UNKNOWN_OUTCOME, Pool

_log = structlog.get_logger("notices")
_ENCODE: Final = msgspec.json.Encoder().encode
_EVERY_S: Final = 2.0
_BATCH: Final = 2000
_PUBLISH_S: Final = 5.0
_WATCH: Final = "select metering.credit_watch($1, $2, $3)"
_LOW: Final = (
    "select a.id from metering.account a where a.granted > 0 and a.granted - a.spent <= $1 and a.id > $2"
    " order by a.id limit $3"
)
_UNSENT: Final = "select * from metering.credit_notice where sent_at is null order by at limit 500"
_SENT: Final = (
    "update metering.credit_notice set sent_at = now() where account = $1 and number = $2 and sent_at is null"
)
_UNSENT_GRANTS: Final = "select * from metering.grant_notice where sent_at is null order by number limit 500"
_SENT_GRANTS: Final = "update metering.grant_notice set sent_at = now() where id = any ($1) and sent_at is null"


@dataclass(slots=True)
class Notices:
    """Watches the balances of accounts that pay."""

    bus: Bus
    pool: Pool
    low: Decimal
    """A balance at or below it is low."""
    link: Callable[[], Awaitable[str | None]]
    """Asks where credits are bought."""
    _seen: dict[str, bool] = field(default_factory=dict)
    """Accounts to look at; True = one of their calls was refused for want of credit."""

    def settled(self, result: TurnResult) -> None:
        """These calls were charged, or cost nothing."""
        for entry in result.settled:
            self._seen.setdefault(entry.arrival.fact.account, False)

    def refused(self, refusals: Sequence[Refusal]) -> None:
        """These reserves were refused."""
        for refusal in refusals:
            if refusal.status == ReserveStatus.NOT_ENOUGH:
                self._seen[refusal.asked.account] = True

    def changed(self, accounts: Iterable[str]) -> None:
        """The credit of these accounts is another one now."""
        for account in accounts:
            self._seen.setdefault(account, False)

    async def run(self) -> None:
        """Look at every account once at start, then at those that paid, every two seconds."""
        looked_at_all = False
        while True:
            try:
                if not looked_at_all:
                    await self._look_at_all()
                    looked_at_all = True
                await self.look()
                await self._publish()
                await self._publish_grants()
            except (*UNKNOWN_OUTCOME, asyncpg.PostgresError, NatsError) as error:
                _log.warning("notices wait", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Book the crossings of the accounts that were seen since the last time.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: they are looked at again.
        """
        while self._seen:
            batch = dict(list(self._seen.items())[:_BATCH])
            for account in batch:
                del self._seen[account]
            try:
                await self.pool.fetchval(_WATCH, list(batch), list(batch.values()), self.low)
            except BaseException:
                self._seen = batch | self._seen
                raise

    async def _look_at_all(self) -> None:
        """Crossings that a process which died had not booked."""
        after = ""
        while True:
            accounts = [row["id"] for row in await self.pool.fetch(_LOW, self.low, after, _BATCH)]
            if not accounts:
                return
            await self.pool.fetchval(_WATCH, accounts, [False] * len(accounts), self.low)
            after = accounts[-1]

    async def _publish(self) -> None:
        """Everything that is booked and not told; several processes may do it at once, the id is the same."""
        rows = await self.pool.fetch(_UNSENT)
        link = await self.link() if rows else None
        for row in rows:
            notice = CreditNotice(
                account=row["account"],
                number=row["number"],
                level=row["level"],
                balance=f"{row['balance']:f}",
                threshold=f"{row['threshold']:f}",
                noticed_at=iso_ms(row["at"]),
                link=link or "",
            )
            await self._send(credit_event(_worded(notice)))
            await self.pool.execute(_SENT, row["account"], row["number"])

    async def _publish_grants(self) -> None:
        """The same of what was given and has ended; many at once, since many users may be welcomed at once."""
        while rows := await self.pool.fetch(_UNSENT_GRANTS):
            link = await self.link()
            notices = [_worded(_grant_notice(row, self.low, link)) for row in rows]
            ids = [grant_event_id(str(row["id"])) for row in rows]
            await asyncio.gather(*map(self._send, map(credit_event, notices, ids)))
            await self.pool.execute(_SENT_GRANTS, [row["id"] for row in rows])

    async def _send(self, event: CreditEvent) -> None:
        await self.bus.jetstream().publish(
            subjects.credit_notice(subjects.CreditLevel(event.data.level)),
            _ENCODE(event),
            timeout=_PUBLISH_S,
            stream=CREDIT.name,
            headers={"Nats-Msg-Id": event.id, "Content-Type": CONTENT_TYPE},
        )
        metrics.NOTICES.labels(event.data.level).inc()


def _worded(notice: CreditNotice) -> CreditNotice:
    return msgspec.structs.replace(notice, texts=words.texts(notice))


def _grant_notice(row: asyncpg.Record, low: Decimal, link: str | None) -> CreditNotice:
    return CreditNotice(
        account=row["account"],
        number=row["number"],
        level=row["level"],
        balance="" if row["balance"] is None else f"{row['balance']:f}",
        threshold=to_text(low),
        noticed_at=iso_ms(row["at"]),
        amount=f"{row['amount']:f}",
        grant_id=row["grant_id"],
        category=row["category"],
        name=row["name"],
        expires_at="" if row["expires_at"] is None else iso_ms(row["expires_at"]),
        link=link or "",
    )
