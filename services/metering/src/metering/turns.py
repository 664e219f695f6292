"""The turn: facts and reserves gather while one transaction runs, then go together into the next. No timer.

After each commit, in this order: replies to reserves, `settled` to gateways; a moment later, for all turns since then,
`settled` to routers, usage events, acks. So an ack never precedes its effect, and whatever dies in between is repeated
and changes nothing.

Source: settle protocol, steps 1, 8 and 9; crash rows 2 and 12 to 16.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import msgspec
import structlog

from metering import metrics
from metering.events import Arrival, UnreadableFactError
from metering.events import read as read_fact
from metering.fair import FairQueue
from metering.replies import INVALID, UNAVAILABLE, Replies, SecondLook
from metering.reserve import Asked
from metering.reserve import read as read_reserves
from metering.settle import NAK_DELAY_MAX_S, Announcer, Unsettled, deliveries, lost, quietly, unsettled
from metering.sql.store import Refusal, TurnResult, TurnStore
from runtime import failpoints
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("turns")
ANNOUNCE_S: Final = 0.02
"""How long routers, subscribers and acks wait for company: waking a process for each call costs more than the call."""
TROUBLE_S: Final = 2 * NAK_DELAY_MAX_S
"""After a turn that failed: by then its facts have come again, and were settled unless another one failed."""
_BAD_VALUE: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


@dataclass(slots=True)
class Turns:
    """The money loop of one process."""

    store: TurnStore
    announcer: Announcer
    publish_usage: Callable[[TurnResult], None]
    usage_in_doubt: Callable[[], None]
    """A turn may have settled calls of which we know nothing."""
    on_refused: Callable[[Sequence[Refusal]], None]
    """Told of reserves that were refused."""
    suspect: Callable[[str, bytes, bytes], None]
    """Takes a message that may have killed whoever took it before."""
    suspect_deliveries: int
    turn_max: int
    wait_s: float
    """Reserves that wait longer are answered `unavailable`."""
    reserves_max: int
    second_look: SecondLook | None = None
    _replies: Replies = field(init=False)
    _facts: FairQueue[Arrival] = field(default_factory=FairQueue)
    _asked: FairQueue[Asked] = field(default_factory=FairQueue)
    _unreadable: list[Unsettled] = field(default_factory=list)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _done: list[tuple[TurnResult, list[Arrival]]] = field(default_factory=list)
    """Committed, and known to the gateways only."""
    _announcing: asyncio.TimerHandle | None = None
    _failed_at: float = -math.inf
    """When a turn has failed here, by the loop's clock."""
    closed: bool = False
    """Reserves are refused: the unit of credits is being converted."""
    _draining: bool = False
    _ended: bool = False

    def __post_init__(self) -> None:
        self._replies = Replies(self.announcer.bus, self.second_look, self._ask_again)

    # ---- in: called inside the read of the bus ----------------------------------------------------------------------

    def on_reserve(self, _subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        """A batch of reserves."""
        try:
            request, asked = read_reserves(payload, reply, asyncio.get_running_loop().time())
        except msgspec.DecodeError as error:
            _log.warning("unreadable reserve", detail=str(error)[:200])
            return
        if self._ended or self.closed or len(self._asked) + len(asked) > self.reserves_max:
            self._replies.refuse_rest(request)
        if request.missing == 0:
            self._replies.send(request)
            return
        self._replies.expect(request)
        for call in asked:
            self._asked.put(call.account, call)
        self._woken.set()

    def on_fact(self, subject: str, ack: bytes, payload: bytes) -> None:
        """A message of the settle consumer."""
        if self._ended:
            quietly(self.announcer.pull.nak, ack, 0.0)
            return
        if deliveries(ack) >= self.suspect_deliveries and not self._is_troubled():
            self.suspect(subject, ack, payload)
            return
        try:
            fact = read_fact(subject, payload)
        except UnreadableFactError as error:
            self._unreadable.append(Unsettled(subject, ack, payload, "unreadable", str(error)))
        else:
            self._facts.put(fact.account, Arrival(fact, subject, ack, payload))
        self._woken.set()

    def _is_troubled(self) -> bool:
        """Turns have failed here lately: that messages come again says nothing about them."""
        return asyncio.get_running_loop().time() - self._failed_at < TROUBLE_S

    # ---- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn, until `drain` was called and nothing waits."""
        while True:
            while not (self._facts or self._asked or self._unreadable):
                if self._draining:
                    self._ended = True
                    self.announce_rest()
                    return
                self._woken.clear()
                await self._woken.wait()
            # A cancellation between statement and answer would leave a commit that nobody knows of.
            await asyncio.shield(self._turn())

    async def watch(self) -> None:
        """Refuse reserves that have waited too long, whatever the database does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(0.1, self.wait_s / 4))
            metrics.BACKLOG.labels("facts").set(len(self._facts))
            metrics.BACKLOG.labels("reserves").set(len(self._asked))
            self._replies.refuse_older(loop.time() - self.wait_s)

    def drain(self) -> None:
        """Let `run` return once nothing waits."""
        self._draining = True
        self._woken.set()

    async def _turn(self) -> None:
        unreadable, self._unreadable = self._unreadable, []
        if unreadable:
            await self.announcer.park(unreadable)
        facts = self._facts.take(self.turn_max, lambda arrival: (arrival.fact.call_id,))
        taken = self._asked.take(self.turn_max, lambda call: (call.call_id, call.digest or call.call_id))
        asked = [call for call in taken if call.request.missing]
        if not facts and not asked:
            return
        try:
            await self._settle_and_reserve(facts, asked)
        except _BAD_VALUE as error:
            if len(facts) + len(asked) == 1:
                await self._give_up(facts, asked, error)
            else:
                await self._one_by_one(facts, asked)

    async def _one_by_one(self, facts: Sequence[Arrival], asked: Sequence[Asked]) -> None:
        """One bad value undid the whole turn: find whose it is, without taking the neighbours along."""
        alone: list[tuple[list[Arrival], list[Asked]]] = [([fact], []) for fact in facts]
        alone += [([], [call]) for call in asked]
        for single_facts, single_asked in alone:
            try:
                await self._settle_and_reserve(single_facts, single_asked)
            except _BAD_VALUE as error:
                await self._give_up(single_facts, single_asked, error)

    async def _give_up(self, facts: Sequence[Arrival], asked: Sequence[Asked], error: asyncpg.PostgresError) -> None:
        for call in asked:
            _log.warning("reserve refused", call_id=call.call_id, error=type(error).__name__, detail=str(error)[:200])
            self._replies.refuse(call, INVALID)
        if facts:
            await self.announcer.park([unsettled(arrival, "bad_value", str(error)) for arrival in facts])

    async def _settle_and_reserve(self, facts: Sequence[Arrival], asked: Sequence[Asked]) -> None:
        """One transaction and everything that follows from it.

        Raises:
            asyncpg.DataError, asyncpg.IntegrityConstraintViolationError: nothing was written, one value is to blame.
        """
        started = time.perf_counter()
        try:
            failpoints.hit("metering.before_commit")
            result = await self.store.turn(facts, asked)
            failpoints.hit("metering.after_commit")
            if len(result.refused) < len(asked):
                failpoints.hit("metering.reserve_committed")
        except _BAD_VALUE:
            raise
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            self._failed(facts, asked, error)
            return
        metrics.TURN_SECONDS.observe(time.perf_counter() - started)
        metrics.TURN_CALLS.observe(len(facts) + len(asked))
        self._replies.turned(asked, result)
        if result.refused:
            self.on_refused(result.refused)
        if facts:
            await self._announce(facts, result)

    async def _announce(self, facts: Sequence[Arrival], result: TurnResult) -> None:
        """Clients wait for the gateways' notices; all else leaves together a moment later, as one write."""
        self.announcer.tell_settled(result)
        gone = lost(result)
        if gone:
            await self.announcer.park(gone)
        parked = {id(message.arrival) for message in gone}
        self._done.append((result, [arrival for arrival in facts if id(arrival) not in parked]))
        if self._announcing is None:
            self._announcing = asyncio.get_running_loop().call_later(ANNOUNCE_S, self.announce_rest)

    def announce_rest(self) -> None:
        """Routers, subscribers and the stream learn of the turns since the last time."""
        if self._announcing is not None:
            self._announcing.cancel()
            self._announcing = None
        done, self._done = self._done, []
        if not done:
            return
        self.announcer.tell_routers()
        for result, _ in done:
            self.publish_usage(result)
        try:
            failpoints.hit("metering.before_ack")
        except ConnectionError:
            _log.warning("acks dropped by a failpoint", turns=len(done))
            return
        for _, facts in done:
            self.announcer.ack(facts)

    def _failed(self, facts: Sequence[Arrival], asked: Sequence[Asked], error: Exception) -> None:
        """Nothing is known: facts come again later, reserves are refused."""
        self._failed_at = asyncio.get_running_loop().time()
        metrics.TURNS_FAILED.labels(type(error).__name__).inc()
        report = _log.warning if isinstance(error, UNKNOWN_OUTCOME) else _log.error
        counts = {"facts": len(facts), "reserves": len(asked)}
        report("turn failed", **counts, error=type(error).__name__, detail=str(error)[:300])
        for arrival in facts:
            self.announcer.nak(arrival.ack)
        for call in asked:
            self._replies.refuse(call, UNAVAILABLE)

    def _ask_again(self, call: Asked) -> None:
        """After its second look."""
        if self._ended or not call.request.missing:
            self._replies.refuse(call, UNAVAILABLE)
            return
        self._asked.put(call.account, call)
        self._woken.set()
