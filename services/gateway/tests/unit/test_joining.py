"""What a request whose key is taken becomes: the other call's answer, its error, or a call of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from contracts import frames
from contracts.dispatch import DispatchHeader
from contracts.errors import ErrorCode, HubError
from contracts.frames import FrameKind
from contracts.rpc.metering import ReserveCall, SettledCall
from gateway.joining import RESERVES_MAX, joining
from gateway.kept import KeptAnswer
from gateway.open_call import OpenCall, Stage

OTHER = "other"
FAILURE = msgspec.json.encode(frames.Failure(ErrorCode.UPSTREAM_BROKEN, "It broke."))


def open_call() -> OpenCall:
    header = DispatchHeader("own", 1, 7, "gateway", "acct", "chat", "openai", True, 0, (), "1", kept=True)
    reserve = ReserveCall("own", "acct", "1", "chat", "openai", "m", True, (), 600.0, "u", "p", "k")
    return OpenCall(header, b"{}", reserve, due=0.0)


@dataclass
class Answers:
    """Stands where the kept answers stand: the test plays router and books."""

    answer: KeptAnswer = field(default_factory=lambda: KeptAnswer(OTHER, begun=True))
    reserved: list[OpenCall] = field(default_factory=list)

    def follow(self, _call_id: str, changed: Callable[[], None]) -> KeptAnswer:
        self.answer.readers.append(changed)
        return self.answer

    def leave(self, answer: KeptAnswer, changed: Callable[[], None]) -> None:
        if changed in answer.readers:
            answer.readers.remove(changed)

    def join(self, call: OpenCall) -> None:
        answers: Any = self
        joining(answers)(call, OTHER, self.reserved.append)

    def frame(self, kind: FrameKind, payload: bytes, *, stored: bool = False) -> None:
        self.answer.take(frames.pack(kind, 1, self.answer.next_frame, payload), stored=stored)

    def close(self, state: str) -> None:
        self.answer.settled = SettledCall(OTHER, state, "0.5000000000")
        self.answer.tell()


@pytest.fixture
def answers() -> Answers:
    return Answers()


def test_bytes_come_as_they_come_and_the_tail_with_the_books(answers: Answers) -> None:
    call = open_call()
    answers.frame(FrameKind.DATA, b"a", stored=True)
    answers.join(call)
    answers.frame(FrameKind.DATA, b"b")
    assert (call.take(), call.call_id) == (b"ab", OTHER)
    answers.frame(FrameKind.END, frames.end_payload(b"tail", None))
    assert not call.ready
    answers.close("success")
    assert call.ready
    assert (call.held, call.settled) == (b"tail", answers.answer.settled)


def test_a_failure_that_comes_while_one_waits_is_the_answer(answers: Answers) -> None:
    call = open_call()
    answers.join(call)
    answers.frame(FrameKind.ERROR, FAILURE)
    assert call.error is not None
    assert (call.error.code, call.error.call_id) == (ErrorCode.UPSTREAM_BROKEN, OTHER)
    assert not answers.reserved


def test_a_failure_of_before_makes_a_new_call_once_it_is_in_the_books(answers: Answers) -> None:
    call = open_call()
    answers.answer.begun = False
    answers.join(call)
    answers.frame(FrameKind.DATA, b"a", stored=True)
    answers.frame(FrameKind.ERROR, FAILURE, stored=True)
    answers.answer.begun = True
    answers.answer.tell()
    assert (call.error, answers.reserved, call.chunks) == (None, [], [])
    answers.close("failed")
    assert answers.reserved == [call]
    assert (call.stage, call.call_id, answers.answer.readers) == (Stage.RESERVING, "own", [])


def test_a_call_that_failed_each_time_is_not_tried_for_ever(answers: Answers) -> None:
    call = open_call()
    answers.frame(FrameKind.ERROR, FAILURE, stored=True)
    answers.answer.settled = SettledCall(OTHER, "failed", "0")
    for _ in range(RESERVES_MAX):
        assert call.error is None
        answers.join(call)
    assert len(answers.reserved) == RESERVES_MAX - 1
    assert call.error is not None
    assert call.error.code == ErrorCode.UPSTREAM_BROKEN


def test_a_failure_in_the_midst_is_an_error_and_no_second_answer(answers: Answers) -> None:
    call = open_call()
    answers.frame(FrameKind.DATA, b"a", stored=True)
    answers.join(call)
    answers.frame(FrameKind.ERROR, FAILURE)
    answers.close("failed")
    assert call.take() == b"a"
    assert call.error is not None
    assert not answers.reserved


def test_an_answer_that_is_not_kept_is_a_conflict(answers: Answers) -> None:
    call = open_call()
    answers.answer.missing = True
    answers.answer.lost = HubError(ErrorCode.NOT_FOUND, "gone")
    answers.join(call)
    assert call.error is not None
    assert (call.error.code, call.error.call_id) == (ErrorCode.IDEMPOTENCY_CONFLICT, OTHER)


def test_a_client_that_has_left_joins_nothing(answers: Answers) -> None:
    call = open_call()
    call.gone = True
    answers.join(call)
    assert call.error is not None
    assert call.error.code == ErrorCode.CLIENT_CANCELLED
    assert not answers.answer.readers
