"""What follows a commit: `settled` to whoever waits, acks, and a place for facts that cannot be settled."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import subjects
from contracts.rpc.metering import SettledBatch, SettledCall
from metering import metrics
from metering.events import Arrival
from metering.sql.store import Standing, TurnResult, TurnStore
from runtime import failpoints
from runtime.bus import Bus, StandingPull
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("settle")
_ENCODE: Final = msgspec.json.Encoder().encode
_NONE: Final = "0.0000000000"
NAK_DELAY_MAX_S: Final = 30.0
_TERMINAL: Final = frozenset(("success", "failed"))
_ROUTER: Final = "provider-router"
_Told = dict[tuple[str, str], list[SettledCall]]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A message that can never be settled, and why."""

    subject: str
    ack: bytes
    payload: bytes
    reason: str
    """A word for metrics: `unreadable`, `bad_value`, `unknown_call`, `other_account` or `poison`."""
    detail: str = ""
    arrival: Arrival | None = None
    """The fact, if it could be read: whoever waits for it is told."""

    @property
    def call_id(self) -> str | None:
        """Of the call, if it could be read."""
        return None if self.arrival is None else self.arrival.fact.call_id


def unsettled(arrival: Arrival, reason: str, detail: str = "") -> Unsettled:
    """A fact that could be read, but not settled."""
    return Unsettled(arrival.subject, arrival.ack, arrival.payload, reason, detail, arrival)


def lost(result: TurnResult) -> list[Unsettled]:
    """The facts of a turn whose account has no such call."""
    return [
        unsettled(entry.arrival, "unknown_call" if entry.state is None else "other_account")
        for entry in result.standing
        if _is_lost(entry)
    ]


@dataclass(frozen=True, slots=True)
class Announcer:
    """Says on the bus what the books have."""

    bus: Bus
    pull: StandingPull
    store: TurnStore
    routers: dict[str, list[SettledCall]] = field(default_factory=dict)
    """Routers that have not been told yet."""

    def tell_settled(self, result: TurnResult) -> None:
        """One message per gateway at once, since clients wait; routers are told by `tell_routers`, which can wait."""
        told: _Told = {}
        states: Counter[str] = Counter()
        overruns = 0
        for settled in result.settled:
            fact = settled.arrival.fact
            states[fact.state] += 1
            overruns += settled.overrun != _NONE
            _collect(told, settled.arrival, SettledCall(fact.call_id, fact.state, settled.credits))
        for state, number in states.items():
            metrics.SETTLED.labels(state).inc(number)
        metrics.OVERRUN.inc(overruns)
        metrics.REPEATED.inc(len(result.standing))
        for entry in result.standing:
            if entry.state in _TERMINAL and not _is_lost(entry):
                call = SettledCall(entry.arrival.fact.call_id, str(entry.state), entry.credits)
                _collect(told, entry.arrival, call)
        for (service, process), calls in told.items():
            if service == _ROUTER:
                self.routers.setdefault(process, []).extend(calls)
        self._send({key: calls for key, calls in told.items() if key[0] != _ROUTER})

    def tell_routers(self) -> None:
        """One message per router for everything settled since the last time."""
        told: _Told = {(_ROUTER, process): calls for process, calls in self.routers.items()}
        self.routers.clear()
        if told:
            self._send(told)

    def tell(self, gateway: str, router: str, call: SettledCall) -> None:
        """One call to those who wait for it; a name may be empty."""
        named = {("gateway", gateway): [call], (_ROUTER, router): [call]}
        self._send({key: calls for key, calls in named.items() if key[1]})

    def ack(self, facts: Sequence[Arrival]) -> None:
        """Take facts off the stream: their effect is committed."""
        for arrival in facts:
            quietly(self.pull.ack, arrival.ack)

    def nak(self, ack: bytes) -> None:
        """Ask for a message again, later each time."""
        quietly(self.pull.nak, ack, min(NAK_DELAY_MAX_S, 0.25 * 2 ** min(deliveries(ack), 10)))

    async def park(self, messages: Sequence[Unsettled]) -> None:
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
                self.nak(message.ack)
            return
        told: _Told = {}
        for message in messages:
            metrics.PARKED.labels(message.reason).inc()
            _log.error("fact parked", reason=message.reason, call_id=message.call_id, subject=message.subject)
            quietly(self.pull.term, message.ack)
            if message.arrival is not None:
                _collect(told, message.arrival, SettledCall(message.arrival.fact.call_id, "", _NONE, parked=True))
        self._send(told)

    def _send(self, told: _Told) -> None:
        try:
            failpoints.hit("metering.before_settled")
        except ConnectionError:
            _log.warning("settled notices dropped by a failpoint", processes=len(told))
            return
        for (service, process), calls in told.items():
            quietly(self.bus.send, subjects.inbox_settled(service, process), _ENCODE(SettledBatch(tuple(calls))))


def quietly(send: Callable[..., None], *arguments: object) -> None:
    """Send; while the bus is away or full the message is lost, which redelivery and later questions make good."""
    try:
        send(*arguments)
    except NatsError as error:
        _log.warning("not sent", error=type(error).__name__)


def _collect(told: _Told, arrival: Arrival, call: SettledCall) -> None:
    if arrival.fact.gateway:
        told.setdefault(("gateway", arrival.fact.gateway), []).append(call)
    if arrival.fact.router:
        told.setdefault((_ROUTER, arrival.fact.router), []).append(call)


def _is_lost(entry: Standing) -> bool:
    """Whether the books have no such call for this account."""
    return entry.state is None or entry.account != entry.arrival.fact.account


def deliveries(ack: bytes) -> int:
    """How often a message has been delivered, from its ack subject (`$JS.ACK.…`, nine or twelve tokens)."""
    tokens = ack.split(b".")
    place = 4 if len(tokens) == 9 else 6  # noqa: PLR2004 - the two forms of the subject
    try:
        return int(tokens[place])
    except (IndexError, ValueError):
        return 1
