"""How often what is not settled is repeated: soon while metering answers, ever more rarely while it is silent."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from nats.errors import NoRespondersError

from contracts.events import CallFailed
from contracts.ids import new_call_id
from contracts.rpc.envelope import Reply
from contracts.rpc.metering import SettledBatch, SettledCall
from contracts.rpc.model_calls import CallOutcomesReply
from provider_router.outcome import REPEAT_AFTER_MAX_S, REPEAT_AFTER_S, SWEEP_S, Outcomes


@dataclass
class Sent:
    """A bus whose time is ours: what was published when; questions are answered or not."""

    now: float = 1000.0
    answers: bool = False
    is_connected: bool = True
    at: list[float] = field(default_factory=list)
    questions: int = 0
    reconnected: list[Callable[[], None]] = field(default_factory=list)

    def send(self, _subject: str, _payload: bytes, headers: bytes) -> None:
        assert b"Nats-Msg-Id" in headers
        self.at.append(self.now)

    async def call(self, _subject: str, _payload: bytes, _timeout_s: float) -> bytes:
        self.questions += 1
        if not self.answers:
            raise NoRespondersError
        return Reply[CallOutcomesReply](ok=CallOutcomesReply(calls=())).model_dump_json().encode()

    async def listen(self, _subject: str, _listener: object) -> None:
        """Notices are given by the test."""

    def after_reconnect(self, react: Callable[[], None]) -> None:
        self.reconnected.append(react)

    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.at)]


def _failed() -> CallFailed:
    return CallFailed(
        call_id=new_call_id(), epoch=1, account="did:a", kind="chat", code="upstream_broken", reason="",
        failed_at="2026-11-25T09:30:00.000Z", gateway="g", router="r",
    )  # fmt: skip


@pytest.fixture
async def sent() -> Sent:
    return Sent()


@pytest.fixture
async def outcomes(sent: Sent, tmp_path: Path) -> AsyncIterator[Outcomes]:
    outcomes = Outcomes(cast("Any", sent), "provider-router-1", tmp_path, clock=lambda: sent.now)
    await outcomes.start()
    outcomes.failed(_failed())
    yield outcomes
    outcomes.open.clear()
    await outcomes.drain(0)


async def _pass(sent: Sent, outcomes: Outcomes, seconds: float) -> None:
    for _ in range(int(seconds / SWEEP_S)):
        sent.now += SWEEP_S
        await outcomes.sweep()


async def test_an_outcome_is_repeated_ever_more_rarely_while_metering_is_away(sent: Sent, outcomes: Outcomes) -> None:
    await _pass(sent, outcomes, 600)
    waits = sent.waits()
    assert waits[0] == REPEAT_AFTER_S + SWEEP_S
    assert waits[1:5] == sorted(waits[1:5])
    assert waits[4] > 2 * waits[2]
    assert all(0.75 * REPEAT_AFTER_MAX_S <= wait <= REPEAT_AFTER_MAX_S + SWEEP_S for wait in waits[6:]), waits
    assert len(set(waits[6:])) > 1, "routers that lost metering together do not come back together"
    assert sent.questions == len(waits)


async def test_an_outcome_is_in_the_spool_after_two_seconds_however_rarely_it_is_repeated(
    sent: Sent, outcomes: Outcomes, tmp_path: Path
) -> None:
    await _pass(sent, outcomes, 120)
    outcomes.failed(_failed())
    repeated = len(sent.at)
    await _pass(sent, outcomes, REPEAT_AFTER_S + SWEEP_S)
    spool = tmp_path / "provider-router-1.jsonl"
    assert len(spool.read_bytes().splitlines()) == 2
    assert len(sent.at) - repeated <= 2, "one round at most"


async def test_while_metering_answers_an_outcome_is_repeated_every_two_seconds(sent: Sent, outcomes: Outcomes) -> None:
    sent.answers = True
    await _pass(sent, outcomes, 60)
    assert set(sent.waits()) == {REPEAT_AFTER_S + SWEEP_S}


@pytest.mark.parametrize("sign", ["a call is settled", "leases are renewed", "the bus is back"])
async def test_the_first_word_from_metering_has_the_rest_repeated_at_once(
    sent: Sent, outcomes: Outcomes, sign: str
) -> None:
    await _pass(sent, outcomes, 300)
    while sent.now - sent.at[-1] < 2 * REPEAT_AFTER_S:  # in the midst of a long wait
        await _pass(sent, outcomes, SWEEP_S)
    repeated = len(sent.at)
    if sign == "a call is settled":
        batch = SettledBatch((SettledCall(new_call_id(), "success", "1.0000000000"),))
        outcomes._on_settled(b"", b"", msgspec.json.encode(batch), None)
    elif sign == "leases are renewed":
        outcomes.heard()
    else:
        for react in sent.reconnected:
            react()
    await _pass(sent, outcomes, SWEEP_S)
    assert len(sent.at) == repeated + 1
    sent.answers = True
    await _pass(sent, outcomes, 2 * (REPEAT_AFTER_S + SWEEP_S))
    assert len(sent.at) == repeated + 3, "and again every two seconds, now that it answers"
