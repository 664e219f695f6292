"""Settled calls → CloudEvents on USAGE: at once from memory, and again from the books if that was lost.

Per account the ledger's sequence is contiguous and becomes visible in order, so "sent up to" per account is nearly all
that has to be remembered. It moves over acknowledged events only and never over a gap; what several processes have
acknowledged meets in the database, where it waits for the gaps before it to be closed. Events that are still missing
after a while are read from the books and published again, under the same id.
An acknowledgement counts for the stream that gave it: when the bus has lost its store, "sent up to" goes back.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import subjects
from contracts.cloudevent import CONTENT_TYPE, usage_event
from contracts.events import UsageRecorded
from metering import metrics, usage_stream
from metering.recorded import from_books, from_memory, kind_of
from metering.sql.store import TurnResult
from metering.times import iso_ms
from runtime import failpoints
from runtime.bus import Bus, header_block
from runtime.postgres import UNKNOWN_OUTCOME, Pool

_log = structlog.get_logger("usage_events")
_ENCODE: Final = msgspec.json.Encoder().encode
_FLUSH_S: Final = 1.0
_CATCH_UP_S: Final = 30.0
_CATCH_UP_SOON_S: Final = 6.0
"""The books show an event as missing five seconds after it was settled."""
_ACK_WAIT_S: Final = 10.0
_SLOW_S: Final = 1.0
"""A PubAck that takes longer: what the books show as missing may be under way."""
_ACKED_MAX: Final = 200_000
"""Acknowledged events that wait for the database; beyond it they are forgotten and read from the books again."""
_PAGE: Final = 1000
_FORWARD: Final = "select account, seq from metering.usage_stored($1, $2, $3, $4)"
_BEHIND: Final = """
select l.account, l.acct_seq, l.amount, c.*
from (
    select a.id, int8multirange(int8range(coalesce(s.seq, 0) + 1, a.seq, '[]')) - coalesce(s.ahead, '{}') as missing
    from metering.account a left join metering.usage_sent s on s.account = a.id
    where a.seq > coalesce(s.seq, 0) and not a.id = any ($2)
    limit $1
) b
cross join lateral unnest(b.missing) gap
cross join lateral (
    select * from metering.ledger l
    where l.account = b.id and l.acct_seq >= lower(gap) and l.acct_seq < upper(gap) and l.at < now() - interval '5 s'
    order by l.acct_seq limit $1
) l
join metering.model_call c on c.id = l.call_id
order by l.account, l.acct_seq
limit $1
"""
_ONE: Final = (
    "select l.account, l.acct_seq, l.amount, c.* from metering.ledger l"
    " join metering.model_call c on c.id = l.call_id where l.call_id = $1"
)


@dataclass(slots=True)
class UsageEvents:
    """Publishes usage events and keeps "sent up to"."""

    bus: Bus
    pool: Pool
    inbox: str
    """Under the process' inbox prefix: PubAcks come to `<inbox>.<number>`."""
    _number: int = 0
    _under_way: dict[int, tuple[str, int, float]] = field(default_factory=dict)
    """Number → account, sequence, when it was sent."""
    _acked: dict[str, list[int]] = field(default_factory=dict)
    _stored: int = 0
    """Acknowledged since the last flush."""
    _refused: bool = False
    """An event was not stored since the last page of missing ones."""
    _stream: str = ""
    """Mark of the stream that we publish to; empty = not known."""
    _catch_up_at: float = 0.0
    _once_more: bool = True
    """After the next look at the books a second one follows soon: what was lost last was too young for the first."""
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is under way."""

    async def start(self) -> None:
        """Listen for PubAcks."""
        self._settled.set()
        await self.bus.listen(f"{self.inbox}.*", self._on_ack)

    def publish(self, result: TurnResult) -> None:
        """The events of one turn; what cannot be sent now is found by `catch_up`."""
        at = iso_ms(result.at)
        for settled in result.settled:
            self._publish(from_memory(settled, at))

    def catch_up_soon(self) -> None:
        """Events may be missing on the bus: a turn or a PubAck was lost, or we have just started."""
        self._catch_up_at = min(self._catch_up_at, asyncio.get_running_loop().time() + _CATCH_UP_SOON_S)
        self._once_more = True

    def reconnected(self) -> None:
        """PubAcks of the old connection come no more; awaiting them would keep their accounts from being caught up."""
        self._forget_stream()
        self.catch_up_soon()

    async def run(self) -> None:
        """Flush every second, catch up at start and soon after a loss, twice each, and every half minute."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                if not self._stream or loop.time() >= self._catch_up_at:
                    await self._look_at_stream()
                await self.flush()
                if loop.time() >= self._catch_up_at:
                    self._catch_up_at = loop.time() + (_CATCH_UP_SOON_S if self._once_more else _CATCH_UP_S)
                    self._once_more = False
                    await self.catch_up()
            except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
                _log.warning("usage events wait", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(_FLUSH_S)

    async def finish(self, timeout_s: float) -> None:
        """Wait for the last PubAcks and flush them; whatever is missing is sent again by the next process."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
                await self.flush()
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.warning("usage events left for later", error=type(error).__name__)

    async def flush(self) -> None:
        """Move "sent up to" of all accounts that have acknowledged events, one statement for all.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: nothing is forgotten, the next flush repeats it.
        """
        metrics.USAGE_STORED.inc(self._stored)
        self._stored = 0
        self._forget_unanswered()
        if not self._acked or not self._stream:
            return
        failpoints.hit("metering.before_usage_sent")
        stream, acked = self._stream, self._acked
        self._acked = {}
        runs = [(account, *run) for account, sequences in acked.items() for run in _runs(sequences)]
        try:
            rows = await self.pool.fetch(
                _FORWARD, stream, [run[0] for run in runs], [run[1] for run in runs], [run[2] for run in runs]
            )
        except BaseException:
            if self._stream == stream:
                self._keep(acked)
            raise
        if not rows:
            self._forget_stream()  # another process has found another stream
            self.catch_up_soon()

    def _keep(self, acked: dict[str, list[int]]) -> None:
        """For the next flush."""
        for account, sequences in acked.items():
            self._acked.setdefault(account, []).extend(sequences)
        if sum(map(len, self._acked.values())) > _ACKED_MAX:
            self._acked.clear()

    async def catch_up(self) -> int:
        """Publish again what the books have and the bus may not; returns how many events.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: the books could not be read.
        """
        total = 0
        while self.bus.is_connected:
            since = asyncio.get_running_loop().time() - _SLOW_S
            busy = list({account for account, _, at in self._under_way.values() if at < since})
            rows = await self.pool.fetch(_BEHIND, _PAGE, busy)
            self._refused = False
            for row in rows:
                self._publish(from_books(row))
            total += len(rows)
            metrics.USAGE_CAUGHT_UP.inc(len(rows))
            if rows:
                _log.info("usage events published again", events=len(rows))
            if len(rows) < _PAGE or not await self._answered() or self._refused:
                break
            await self.flush()
        return total

    async def _look_at_stream(self) -> None:
        """Acknowledgements of another stream than this one count no more.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: nothing is known.
        """
        made_at = await usage_stream.recognised(self.bus, self.pool)
        if made_at != self._stream:
            if self._stream:
                self._catch_up_at = 0.0
            self._forget_stream()
            self._stream = made_at

    def _forget_stream(self) -> None:
        self._stream = ""
        self._acked.clear()
        self._under_way.clear()
        self._settled.set()

    async def publish_again(self, call_id: str) -> bool:
        """Publish the event of one settled call again, under its constant id.

        Returns:
            Whether the stream has stored it now. Within its window of known ids it takes none twice.

        Raises:
            nats.errors.Error: the bus is away.
            asyncpg.PostgresError, OSError, TimeoutError: the books could not be read.
        """
        row = await self.pool.fetchrow(_ONE, call_id)
        if row is None:
            return False
        event = usage_event(from_books(row))
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_reply(payload: bytes | None, _headers: bytes | None) -> None:
            if not answered.done():
                answered.set_result(payload or b'"error"')

        self.bus.ask(
            subjects.usage_recorded(kind_of(event.data.kind)),
            _ENCODE(event),
            on_reply,
            _ACK_WAIT_S,
            header_block(Nats_Msg_Id=event.id, Content_Type=CONTENT_TYPE),
        )
        ack = await answered
        return b'"error"' not in ack and b'"duplicate"' not in ack

    async def _answered(self) -> bool:
        try:
            async with asyncio.timeout(_ACK_WAIT_S):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    def _publish(self, data: UsageRecorded) -> None:
        event = usage_event(data)
        self._number += 1
        try:
            self.bus.send(
                subjects.usage_recorded(kind_of(data.kind)),
                _ENCODE(event),
                f"{self.inbox}.{self._number}",
                header_block(Nats_Msg_Id=event.id, Content_Type=CONTENT_TYPE),
            )
        except NatsError as error:
            _log.warning("usage event not sent", error=type(error).__name__)
            return
        self._under_way[self._number] = (data.account, data.sequence, asyncio.get_running_loop().time())
        self._settled.clear()

    def _on_ack(self, subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        sent = self._under_way.pop(int(subject.rsplit(b".", 1)[1]), None)
        if not self._under_way:
            self._settled.set()
        if sent is None:
            return
        if not payload or b'"error"' in payload:  # the stream is away, not back yet, or full
            self._refused = True
            self.catch_up_soon()
            return
        account, sequence, _ = sent
        self._stored += 1
        self._acked.setdefault(account, []).append(sequence)

    def _forget_unanswered(self) -> None:
        oldest = asyncio.get_running_loop().time() - _ACK_WAIT_S
        unanswered = [number for number, (_, _, at) in self._under_way.items() if at < oldest]
        for number in unanswered:
            del self._under_way[number]
        if unanswered:
            self.catch_up_soon()
        if not self._under_way:
            self._settled.set()


def _runs(sequences: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each contiguous run; sorts in place."""
    sequences.sort()
    first = last = sequences[0]
    for sequence in sequences:
        if sequence > last + 1:
            yield first, last
            first = sequence
        last = sequence
    yield first, last
