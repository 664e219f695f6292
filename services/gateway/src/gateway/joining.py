"""A request whose Idempotency-Key belongs to a call gets that call's answer, running or complete, for nothing."""

import math
import time
from collections.abc import Callable
from typing import Final

from contracts.errors import ErrorCode, HubError
from contracts.events import CallState
from gateway import metrics
from gateway.admission.reserve import RESERVE_S
from gateway.kept import KeptAnswer, KeptAnswers
from gateway.open_call import OpenCall, Stage

RESERVES_MAX: Final = 3
"""How often one request may ask for a hold, because the call that had its key failed each time."""

Reserve = Callable[[OpenCall], None]


def joining(answers: KeptAnswers) -> Callable[[OpenCall, str, Reserve], None]:
    """What a reserver does with a call whose key is taken."""

    def join(call: OpenCall, other_call_id: str, reserve: Reserve) -> None:
        if call.gone:
            call.refuse(HubError(ErrorCode.CLIENT_CANCELLED, "The client left."))
            return
        metrics.JOINED.inc()
        _Joined(call, other_call_id, answers, reserve).look()

    return join


class _Joined:
    """One request that reads the answer of another one's call."""

    def __init__(self, call: OpenCall, other_call_id: str, answers: KeptAnswers, reserve: Reserve) -> None:
        self._call = call
        self._answers = answers
        self._reserve = reserve
        self._taken = 0
        call.stage = Stage.JOINED
        call.due = math.inf  # the answer's reader knows when to give up
        call.joined_call_id = other_call_id
        call.joins += 1
        self._answer: KeptAnswer = answers.follow(other_call_id, self.look)
        self._old_failure = self._answer.failure is not None
        call.leave = self._leave

    def look(self) -> None:
        """Take what is new; end with the answer, or as its call ended."""
        call, answer = self._call, self._answer
        if call.stage is not Stage.JOINED or call.error is not None:
            return
        if not answer.begun and answer.lost is None:
            return  # whether the call has failed already is not known before
        if len(answer.chunks) > self._taken and (answer.failure is None or self._is_news or self._taken):
            call.chunks += answer.chunks[self._taken :]
            self._taken = len(answer.chunks)
            call.wake()
        call.answered_by = answer.answered_by
        if answer.delivered and answer.end is not None:
            call.held, call.splice_at = answer.end
            call.settled = answer.settled
            call.wake()
        elif self._may_call_anew():
            self._call_anew()
        elif answer.failure is not None:
            if answer.lost is not None or answer.settled is not None or self._is_news:
                call.refuse(answer.error or _not_kept(answer.call_id))
        elif answer.missing:
            call.refuse(_not_kept(answer.call_id))
        elif answer.lost is not None:
            call.refuse(answer.error or answer.lost)

    @property
    def _is_news(self) -> bool:
        """Whether the call failed while this request waited for it: then its error is this request's answer too."""
        return self._answer.failure_heard and not self._old_failure

    def _may_call_anew(self) -> bool:
        """Whether the call had failed before this request asked, or died without a word: nobody has paid for it."""
        answer = self._answer
        failed = answer.settled is not None and answer.settled.state == CallState.FAILED
        over = answer.failure is not None or answer.lost is not None
        return failed and over and not self._is_news and not self._taken and self._call.joins < RESERVES_MAX

    def _call_anew(self) -> None:
        call = self._call
        self._leave()
        call.leave = None
        call.joined_call_id = ""
        call.answered_by = ""
        call.stage = Stage.RESERVING
        call.due = time.monotonic() + RESERVE_S + 1
        self._reserve(call)

    def _leave(self) -> None:
        self._answers.leave(self._answer, self.look)


def _not_kept(call_id: str) -> HubError:
    return HubError(
        ErrorCode.IDEMPOTENCY_CONFLICT,
        f"This Idempotency-Key belongs to call {call_id}, whose answer is not kept any more; "
        f"GET /api/v2/calls/{call_id} tells what became of it.",
        call_id=call_id,
    )
