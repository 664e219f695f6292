"""Replies to reserves: a request has one, once each of its calls has its answer or has waited too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from contracts.rpc.metering import ReserveResult, ReserveStatus
from metering import metrics
from metering.reserve import Asked, ReserveRequest
from metering.settle import quietly
from metering.sql.store import TurnResult
from runtime.bus import Bus

_RESERVED: Final = ReserveResult(ReserveStatus.RESERVED)
INVALID: Final = ReserveResult(ReserveStatus.INVALID)
UNAVAILABLE: Final = ReserveResult(ReserveStatus.UNAVAILABLE)

SecondLook: TypeAlias = Callable[[Asked, Callable[[Asked], None], Callable[[Asked, ReserveResult], None]], None]
"""Asked before a call is refused for want of credit, once per call; it calls one of the two functions later."""


@dataclass(slots=True)
class Replies:
    """The requests of one process that have no reply yet."""

    bus: Bus
    second_look: SecondLook | None
    ask_again: Callable[[Asked], None]
    """Puts a call into a later turn."""
    _looked: set[str] = field(default_factory=set)
    """Calls that had their second look."""
    _open: dict[ReserveRequest, None] = field(default_factory=dict)
    """In order of arrival."""

    def expect(self, request: ReserveRequest) -> None:
        """Its calls are answered later."""
        self._open[request] = None

    def turned(self, asked: Sequence[Asked], result: TurnResult) -> None:
        """Answer the calls of a turn that was committed."""
        refused = {id(entry.asked): ReserveResult(entry.status, entry.other_call_id) for entry in result.refused}
        for entry in result.refused:
            metrics.RESERVES.labels(entry.status).inc()
        metrics.RESERVES.labels(_RESERVED.status).inc(len(asked) - len(result.refused))
        for call in asked:
            answer = refused.get(id(call), _RESERVED)
            if answer.status == ReserveStatus.NOT_ENOUGH and self._looks_again(call):
                continue
            self._answer(call, answer)

    def refuse(self, call: Asked, result: ReserveResult) -> None:
        """Answer one call with a refusal."""
        metrics.RESERVES.labels(result.status).inc()
        self._answer(call, result)

    def refuse_rest(self, request: ReserveRequest) -> None:
        """Answer what of a request has no answer with `unavailable`; nothing is sent yet."""
        metrics.RESERVES.labels(UNAVAILABLE.status).inc(request.missing)
        request.answer_rest(UNAVAILABLE)

    def refuse_older(self, oldest: float) -> None:
        """Refuse what arrived before this time, by the loop's clock, and has no reply yet."""
        for request in [request for request in self._open if request.arrived < oldest]:
            self.refuse_rest(request)
            self.send(request)

    def send(self, request: ReserveRequest) -> None:
        """Send the reply of a request."""
        self._open.pop(request, None)
        if request.reply:
            quietly(self.bus.send, request.reply.decode(), request.encoded())

    def _looks_again(self, call: Asked) -> bool:
        """Whether the account's balance is read before the call is refused."""
        if self.second_look is None or call.call_id in self._looked:
            return False
        self._looked.add(call.call_id)
        self.second_look(call, self.ask_again, self.refuse)
        return True

    def _answer(self, call: Asked, result: ReserveResult) -> None:
        if self._looked:
            self._looked.discard(call.call_id)
        if call.request.answer(call.place, result):
            self.send(call.request)
