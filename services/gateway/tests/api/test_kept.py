"""Kept answers, read from a real stream while they grow; the books are the test's."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from rig.waiting import until

from contracts import frames, permissions, subjects
from contracts.errors import ErrorCode
from contracts.frames import FrameKind
from contracts.ids import new_call_id, new_process_id
from contracts.rpc.metering import SettledCall
from gateway.kept import KeptAnswer, KeptAnswers
from runtime.bus import Bus

HEAD = msgspec.json.encode(frames.Head("fake", "m", "text/event-stream"))
END = frames.end_payload(b"tail", 2)
FAILURE = msgspec.json.encode(frames.Failure(ErrorCode.UPSTREAM_BROKEN, "It broke."))


@dataclass
class Stage:
    """A router that writes, a gateway that reads, and what the books say."""

    router: Bus
    answers: KeptAnswers
    books: dict[str, SettledCall]
    call_id: str = field(default_factory=new_call_id)
    number: int = 0
    changes: int = 0

    async def write(self, *kinds: tuple[FrameKind, bytes]) -> None:
        """One message with these frames, stored."""
        message = b"".join(frames.pack(kind, 1, self.number + place, data) for place, (kind, data) in enumerate(kinds))
        self.number += len(kinds)
        await self.router.jetstream().publish(subjects.frames(self.call_id), message)

    def close(self, state: str = "success") -> None:
        self.books[self.call_id] = SettledCall(self.call_id, state, "0.0100000000")

    def follow(self) -> KeptAnswer:
        return self.answers.follow(self.call_id, self.changed)

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def stage(connect: Callable[[str], Awaitable[Bus]]) -> Stage:
    books: dict[str, SettledCall] = {}

    async def outcomes(call_ids: Sequence[str]) -> dict[str, SettledCall]:
        return {call_id: books[call_id] for call_id in call_ids if call_id in books}

    gateway, router = await connect(permissions.GATEWAY), await connect(permissions.ROUTER)
    answers = KeptAnswers(gateway, new_process_id("gateway"), outcomes, settle_s=0.5, call_s=20.0)
    await answers.start()
    return Stage(router, answers, books)


async def seen(look: Callable[[], bool], what: str) -> None:
    async def check() -> bool:
        return look()

    await until(check, what=what)


async def test_what_was_stored_and_what_comes_are_one_answer_without_gap_or_repeat(stage: Stage) -> None:
    await stage.write((FrameKind.ACCEPTED, b"{}"), (FrameKind.HEAD, HEAD), (FrameKind.DATA, b"a"))
    answer = stage.follow()
    for letter in (b"b", b"c", b"d"):
        await stage.write((FrameKind.DATA, letter))
    await seen(lambda: len(answer.chunks) == 4, "all bytes")
    late = stage.follow()
    assert late is answer
    await stage.write((FrameKind.DATA, b"e"), (FrameKind.END, END))
    await seen(lambda: answer.whole, "the end")
    assert not answer.delivered
    stage.close()
    await seen(lambda: answer.delivered, "the books' word")
    assert (b"".join(answer.chunks), answer.end, answer.answered_by) == (b"abcde", (b"tail", 2), "fake/m")
    assert answer.error is None
    stage.answers.leave(answer, stage.changed)
    stage.answers.leave(answer, stage.changed)
    again = stage.follow()
    assert again is not answer
    await seen(lambda: again.delivered, "the whole answer once more")
    assert (b"".join(again.chunks), again.end) == (b"abcde", answer.end)


async def test_an_answer_that_is_never_booked_is_not_given_out(stage: Stage) -> None:
    await stage.write((FrameKind.HEAD, HEAD), (FrameKind.END, END))
    answer = stage.follow()
    await seen(lambda: answer.lost is not None, "the time-out")
    assert answer.error is not None
    assert (answer.error.code, answer.error.call_id) == (ErrorCode.SETTLEMENT_TIMEOUT, stage.call_id)
    stage.close()
    assert stage.follow() is not answer


async def test_a_call_that_has_ended_without_a_kept_answer_is_missing(stage: Stage) -> None:
    stage.close()
    answer = stage.follow()
    await seen(lambda: answer.lost is not None, "nothing is kept")
    assert answer.missing
    assert answer.error is not None
    assert answer.error.code == ErrorCode.NOT_FOUND


async def test_an_answer_whose_beginning_is_gone_is_missing(stage: Stage) -> None:
    stage.number = 3
    await stage.write((FrameKind.DATA, b"d"), (FrameKind.END, END))
    stage.close()
    answer = stage.follow()
    await seen(lambda: answer.missing, "the beginning is gone")
    assert not answer.chunks


async def test_a_frame_that_was_not_heard_is_read(stage: Stage) -> None:
    answer = stage.follow()
    await stage.write((FrameKind.HEAD, HEAD))
    await seen(lambda: answer.next_frame == 1, "the head")
    await stage.write((FrameKind.DATA, b"a"))
    answer.next_frame, answer.chunks = 1, []  # as if it had not come
    await stage.write((FrameKind.DATA, b"b"), (FrameKind.END, END))
    stage.close()
    await seen(lambda: answer.delivered, "the whole answer")
    assert b"".join(answer.chunks) == b"ab"


async def test_a_failure_is_news_to_those_who_waited_and_old_to_those_who_come(stage: Stage) -> None:
    waiting = stage.follow()
    await stage.write((FrameKind.HEAD, HEAD))
    await seen(lambda: waiting.begun and waiting.next_frame == 1, "the head")
    await stage.write((FrameKind.ERROR, FAILURE))
    await seen(lambda: waiting.failure is not None, "the failure")
    assert waiting.failure_heard
    assert waiting.error is not None
    assert (waiting.error.code, waiting.error.status) == (ErrorCode.UPSTREAM_BROKEN, 502)
    stage.answers.leave(waiting, stage.changed)
    stage.close("failed")
    late = stage.follow()
    await seen(lambda: late.settled is not None, "the books' word")
    assert not late.failure_heard


async def test_a_call_that_died_without_a_word_is_an_error(stage: Stage) -> None:
    await stage.write((FrameKind.HEAD, HEAD), (FrameKind.DATA, b"a"))
    answer = stage.follow()
    stage.close("failed")
    await seen(lambda: answer.lost is not None, "the books' word")
    assert answer.error is not None
    assert answer.error.code == ErrorCode.STALE


async def test_nothing_is_left_behind_when_the_last_reader_leaves(stage: Stage) -> None:
    answer = stage.follow()
    task = answer.task
    assert task is not None
    await seen(lambda: answer.begun, "the first look")
    stage.answers.leave(answer, stage.changed)
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    await stage.write((FrameKind.HEAD, HEAD))
    assert answer.next_frame == 0
