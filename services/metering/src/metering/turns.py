"""The turn: facts and reserves gather while one transaction runs, then go together into the next. No timer.

After each commit, in this order: replies to reserves, `settled` to gateways and routers, usage events, acks. So an
ack never precedes its effect, and whatever dies in between is repeated and changes nothing.

Source: settle protocol, steps 1, 8 and 9; crash rows 2 and 12 to 16.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import subjects
from contracts.rpc.metering import ReserveResult, ReserveStatus, SettledBatch, SettledCall
from metering import metrics
from metering.events import Arrival, UnreadableFactError
from metering.events import read as read_fact
from metering.fair import FairQueue
from metering.reserve import Asked, ReserveRequest
from metering.reserve import read as read_reserves
from metering.sql.store import Settled, Standing, TurnResult, TurnStore
from runtime import failpoints
from runtime.bus import Bus, StandingPull
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("turns")
_ENCODE: Final = msgspec.json.Encoder().encode
_RESERVED: Final = ReserveResult(ReserveStatus.RESERVED)
_INVALID: Final = ReserveResult(ReserveStatus.INVALID)
_UNAVAILABLE: Final = ReserveResult(ReserveStatus.UNAVAILABLE)
_NAK_DELAY_MAX_S: Final = 30.0
_BAD_VALUE: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_NONE: Final = "0.0000000000"
_TERMINAL: Final = frozenset(("success", "failed"))


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A message that is parked in a batch of its own."""

    subject: str
    ack: bytes
    payload: bytes
    reason: str
    detail: str
    arrival: Arrival | None = None
    """The fact, if it could be read: whoever waits for it is told."""

    @property
    def call_id(self) -> str | None:
        return None if self.arrival is None else self.arrival.fact.call_id


@dataclass(slots=True)
class Turns:
    """The money loop of one process."""

    bus: Bus
    store: TurnStore
    pull: StandingPull
    publish_usage: Callable[[TurnResult], None]
    turn_max: int
    wait_s: float
    """Reserves that wait longer are answered `unavailable`."""
    reserves_max: int
    _facts: FairQueue[Arrival] = field(default_factory=FairQueue)
    _asked: FairQueue[Asked] = field(default_factory=FairQueue)
    _unreadable: list[_Unreadable] = field(default_factory=list)
    _open: dict[ReserveRequest, None] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    # ---- in: called inside the read of the bus ----------------------------------------------------------------------

    def on_reserve(self, _subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        """A batch of reserves."""
        try:
            request, asked = read_reserves(payload, reply, asyncio.get_running_loop().time())
        except msgspec.DecodeError as error:
            _log.warning("unreadable reserve", detail=str(error)[:200])
            return
        if len(self._asked) + len(asked) > self.reserves_max:
            request.answer_rest(_UNAVAILABLE)
        if request.missing == 0:
            self._reply(request)
            return
        self._open[request] = None
        for call in asked:
            self._asked.put(call.account, call)
        self._woken.set()

    def on_fact(self, subject: str, ack: bytes, payload: bytes) -> None:
        """A message of the settle consumer."""
        try:
            fact = read_fact(subject, payload)
        except UnreadableFactError as error:
            self._unreadable.append(_Unreadable(subject, ack, payload, "unreadable", str(error)))
        else:
            self._facts.put(fact.account, Arrival(fact, subject, ack, payload))
        self._woken.set()

    # ---- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn, until `drain` and nothing waits."""
        while True:
            while not (self._facts or self._asked or self._unreadable):
                if self._stopping:
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
            oldest = loop.time() - self.wait_s
            for request in [request for request in self._open if request.arrived < oldest]:
                request.answer_rest(_UNAVAILABLE)
                self._reply(request)

    def drain(self) -> None:
        """Let `run` return once nothing waits."""
        self._stopping = True
        self._woken.set()

    async def _turn(self) -> None:
        unreadable, self._unreadable = self._unreadable, []
        if unreadable:
            await self._park(unreadable)
        facts = self._facts.take(self.turn_max, lambda arrival: (arrival.fact.call_id,))
        asked = [
            call
            for call in self._asked.take(self.turn_max, lambda call: (call.call_id, call.digest or call.call_id))
            if call.request.missing
        ]
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
        for single_facts, single_asked in [([fact], []) for fact in facts] + [([], [call]) for call in asked]:
            try:
                await self._settle_and_reserve(single_facts, single_asked)
            except _BAD_VALUE as error:
                await self._give_up(single_facts, single_asked, error)

    async def _give_up(self, facts: Sequence[Arrival], asked: Sequence[Asked], error: asyncpg.PostgresError) -> None:
        for call in asked:
            _log.warning("reserve refused", call_id=call.call_id, error=type(error).__name__, detail=str(error)[:200])
            self._answer(call, _INVALID)
        if facts:
            await self._park([_unsettled(arrival, "bad_value", str(error)) for arrival in facts])

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
        except _BAD_VALUE:
            raise
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            self._failed(facts, asked, error)
            return
        metrics.TURN_SECONDS.observe(time.perf_counter() - started)
        metrics.TURN_CALLS.observe(len(facts) + len(asked))
        self._answer_reserves(asked, result)
        if not facts:
            return
        lost = [entry for entry in result.standing if _is_lost(entry)]
        self._tell_settled(result)
        self.publish_usage(result)
        try:
            failpoints.hit("metering.before_ack")
        except ConnectionError:
            return  # armed by a test: the acks are lost, the facts come again
        gone = {id(entry.arrival) for entry in lost}
        for arrival in facts:
            if id(arrival) not in gone:
                self._quietly(self.pull.ack, arrival.ack)
        if lost:
            await self._park([_unsettled(entry.arrival, _loss(entry), "") for entry in lost])

    def _failed(self, facts: Sequence[Arrival], asked: Sequence[Asked], error: Exception) -> None:
        """Nothing is known: facts come again later, reserves are refused."""
        metrics.TURNS_FAILED.labels(type(error).__name__).inc()
        report = _log.warning if isinstance(error, UNKNOWN_OUTCOME) else _log.error
        report(
            "turn failed", facts=len(facts), reserves=len(asked), error=type(error).__name__, detail=str(error)[:300]
        )
        for arrival in facts:
            self._nak(arrival.ack)
        for call in asked:
            self._answer(call, _UNAVAILABLE)

    # ---- out --------------------------------------------------------------------------------------------------------

    def _answer_reserves(self, asked: Sequence[Asked], result: TurnResult) -> None:
        if not asked:
            return
        if len(result.refused) < len(asked):
            try:
                failpoints.hit("metering.reserve_committed")
            except ConnectionError:
                return  # armed by a test: the replies are lost
        refused = {id(entry.asked): entry for entry in result.refused}
        for call in asked:
            entry = refused.get(id(call)) if refused else None
            self._answer(call, _RESERVED if entry is None else ReserveResult(entry.status, entry.other_call_id))

    def _answer(self, call: Asked, result: ReserveResult) -> None:
        metrics.RESERVES.labels(result.status).inc()
        if call.request.answer(call.place, result):
            self._reply(call.request)

    def _reply(self, request: ReserveRequest) -> None:
        self._open.pop(request, None)
        if request.reply:
            self._quietly(self.bus.send, request.reply.decode(), request.encoded())

    def _tell_settled(self, result: TurnResult) -> None:
        """One message per gateway and one per router, whoever settled the call first."""
        told: dict[tuple[str, str], list[SettledCall]] = {}
        for settled in result.settled:
            fact = settled.arrival.fact
            metrics.SETTLED.labels(fact.state).inc()
            if settled.overrun != _NONE:
                metrics.OVERRUN.inc()
            _collect(told, settled.arrival, SettledCall(fact.call_id, fact.state, settled.credits))
        for entry in result.standing:
            metrics.REPEATED.inc()
            if entry.state in _TERMINAL and not _is_lost(entry):
                _collect(told, entry.arrival, SettledCall(entry.arrival.fact.call_id, entry.state or "", entry.credits))
        self._send_settled(told)

    def _send_settled(self, told: dict[tuple[str, str], list[SettledCall]]) -> None:
        for (service, process), calls in told.items():
            payload = _ENCODE(SettledBatch(tuple(calls)))
            self._quietly(self.bus.send, subjects.inbox_settled(service, process), payload)

    async def _park(self, messages: Sequence[_Unreadable]) -> None:
        """Keep what cannot be settled, tell whoever waits for it, and take it off the stream."""
        try:
            await self.store.park(
                [
                    (m.subject, m.payload, f"{m.reason}: {m.detail}" if m.detail else m.reason, m.call_id)
                    for m in messages
                ]
            )
        except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
            _log.error("parking failed", messages=len(messages), error=type(error).__name__, detail=str(error)[:300])
            for message in messages:
                self._nak(message.ack)
            return
        told: dict[tuple[str, str], list[SettledCall]] = {}
        for message in messages:
            metrics.PARKED.labels(message.reason).inc()
            _log.error("fact parked", reason=message.reason, call_id=message.call_id, subject=message.subject)
            self._quietly(self.pull.term, message.ack)
            if message.arrival is not None:
                _collect(told, message.arrival, SettledCall(message.arrival.fact.call_id, "", _NONE, parked=True))
        self._send_settled(told)

    def _nak(self, ack: bytes) -> None:
        delay = min(_NAK_DELAY_MAX_S, 0.25 * 2 ** min(_deliveries(ack), 10))
        self._quietly(self.pull.nak, ack, delay)

    def _quietly(self, send: Callable[..., None], *arguments: object) -> None:
        """Send; while the bus is away or full the message is lost, which redelivery and later questions make good."""
        try:
            send(*arguments)
        except NatsError as error:
            _log.warning("not sent", error=type(error).__name__)


def _collect(told: dict[tuple[str, str], list[SettledCall]], arrival: Arrival, call: SettledCall) -> None:
    if arrival.fact.gateway:
        told.setdefault(("gateway", arrival.fact.gateway), []).append(call)
    if arrival.fact.router:
        told.setdefault(("provider-router", arrival.fact.router), []).append(call)


def _is_lost(entry: Standing) -> bool:
    """Whether the books have no such call for this account."""
    return entry.state is None or entry.account != entry.arrival.fact.account


def _loss(entry: Standing) -> str:
    return "unknown_call" if entry.state is None else "other_account"


def _unsettled(arrival: Arrival, reason: str, detail: str) -> _Unreadable:
    return _Unreadable(arrival.subject, arrival.ack, arrival.payload, reason, detail, arrival)


def _deliveries(ack: bytes) -> int:
    """How often a message has been delivered, from its ack subject (`$JS.ACK.…`, nine or twelve tokens)."""
    tokens = ack.split(b".")
    place = 4 if len(tokens) == 9 else 6  # noqa: PLR2004 - the two forms of the subject
    try:
        return int(tokens[place])
    except (IndexError, ValueError):
        return 1
