"""Answers whose last frames the bus lost: the books know that they are over, and the caller does not wait for more."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from pydantic import SecretStr

from contracts.dispatch import DispatchHeader
from contracts.errors import ErrorCode
from contracts.ids import new_call_id
from contracts.rpc.metering import ReserveCall, SettledCall
from gateway import dispatch
from gateway.books import seek_lost_notices
from gateway.dispatch import Dispatcher
from gateway.open_call import OpenCall, Stage
from gateway.settings import Settings
from runtime.bus import Bus
from runtime.process import background


@dataclass
class Wire:
    """A bus that says nothing by itself."""

    reactions: list[Callable[[], None]] = field(default_factory=list)
    is_connected: bool = True

    async def listen(self, *_: Any) -> None: ...

    def send(self, *_: Any, **__: Any) -> None: ...

    def after_reconnect(self, react: Callable[[], None]) -> None:
        self.reactions.append(react)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def dispatcher(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    monkeypatch.setattr(dispatch, "TAIL_S", 0.05)
    settings = Settings(
        nats_url=SecretStr("nats://x"), database_url=SecretStr("postgresql://x"), key_pepper=SecretStr("p" * 32)
    )
    dispatcher = Dispatcher(cast("Bus", wire), "gateway-1", settings)
    await dispatcher.start()
    return dispatcher


@dataclass
class _Header:
    call_id: str
    number: int
    kept: bool = False


def running(dispatcher: Dispatcher) -> tuple[OpenCall, asyncio.Event]:
    """A call in the midst of its answer, and an event that tells of each change."""
    call_id = new_call_id(int(time.time() * 1000))
    header = cast("DispatchHeader", _Header(call_id, dispatcher.next_number()))
    call = OpenCall(header, b"", cast("ReserveCall", None), time.monotonic() + 60, Stage.ANSWERING)
    changed = asyncio.Event()
    call.on_change = changed.set
    dispatcher.open(call)
    return call, changed


async def test_a_paid_answer_whose_end_does_not_come_fails_soon(dispatcher: Dispatcher) -> None:
    call, changed = running(dispatcher)
    dispatcher.settled(SettledCall(call.call_id, "success", "0.1"))
    await asyncio.wait_for(changed.wait(), 10)
    assert call.error is not None
    assert call.error.code == ErrorCode.ANSWER_LOST
    assert call.call_id in call.error.message


async def test_a_paid_answer_whose_end_comes_a_little_later_is_whole(dispatcher: Dispatcher) -> None:
    call, _ = running(dispatcher)
    dispatcher.settled(SettledCall(call.call_id, "success", "0.1"))
    call.held, call.stage = b"", Stage.SETTLING
    await asyncio.sleep(dispatch.TAIL_S * 3)
    assert (call.ready, call.error) == (True, None)


async def test_the_books_are_asked_about_calls_that_were_open_while_the_bus_was_away(
    dispatcher: Dispatcher, wire: Wire
) -> None:
    before, changed = running(dispatcher)
    assert dispatcher.unsettled(0.0) == [], "nobody asks about calls that just take long"
    for react in wire.reactions:
        react()
    running(dispatcher)[0].started += 1
    asked: list[list[str]] = []

    async def outcomes(call_ids: Any) -> dict[str, SettledCall]:
        asked.append(list(call_ids))
        return {before.call_id: SettledCall(before.call_id, "success", "0.1")}

    async with background("lost notices", seek_lost_notices(dispatcher, outcomes)):
        await asyncio.wait_for(changed.wait(), 10)
    assert asked[0] == [before.call_id]
    assert before.error is not None
