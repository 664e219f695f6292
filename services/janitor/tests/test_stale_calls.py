"""The janitor against a real nats-server and a metering that speaks the real wire."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from contracts import permissions, subjects
from contracts.events import CallFailed, stale_message_id
from contracts.ids import new_call_id, new_process_id
from contracts.rpc import metering, model_calls
from contracts.rpc.envelope import Reply
from contracts.streams import CALLS, DUTY_LEASES
from hub_local.programs import http_status
from janitor import app
from janitor.app import janitor
from janitor.duties import stale_calls
from janitor.leases import Entry
from janitor.settings import Settings
from runtime import telemetry
from runtime.bus import Bus

FAST = {"stale_period_s": 0.1, "duty_lease_s": 0.5}


@dataclass
class FakeMetering:
    """Answers `stale` as metering does: the same calls again until they are settled."""

    bus: Bus
    stale: list[model_calls.StaleCall] = field(default_factory=list)
    asked_by: Counter[str] = field(default_factory=Counter)

    async def listen(self) -> None:
        await self.bus.listen(subjects.rpc(metering.SERVICE, model_calls.STALE), self._answer, queue=metering.SERVICE)

    def _answer(self, _subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        question = model_calls.StaleCalls.model_validate_json(payload)
        self.asked_by[reply.decode().split(".")[2]] += 1
        calls = tuple(self.stale[: question.limit])
        answer = Reply[model_calls.StaleReply](
            ok=model_calls.StaleReply(calls=calls, oldest_open_at="2026-01-01T00:00:00Z")
        )
        self.bus.send(reply.decode(), answer.model_dump_json(exclude_none=True).encode())


@contextlib.asynccontextmanager
async def fake_metering(nats: Any, *stale: model_calls.StaleCall) -> AsyncIterator[FakeMetering]:
    bus = await nats.connect(permissions.METERING)
    fake = FakeMetering(bus, list(stale))
    await fake.listen()
    yield fake
    await bus.close()


@pytest.fixture
async def books(nats: Any) -> AsyncIterator[FakeMetering]:
    async with fake_metering(nats) as fake:
        yield fake


def settings(nats: Any, **changes: object) -> Settings:
    values: dict[str, object] = {"nats_url": nats.url(permissions.JANITOR), **FAST, **changes}
    return Settings.model_validate(values)


def stale_call(kind: str = "chat") -> model_calls.StaleCall:
    return model_calls.StaleCall(call_id=new_call_id(), epoch=1, account="did:abt:alice", kind=kind, trace_id="a" * 32)


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, within_s: float = 10.0) -> float:
    started = time.monotonic()
    while True:
        met = condition()
        if met is True or (not isinstance(met, bool) and await met):
            return time.monotonic() - started
        assert time.monotonic() - started < within_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


async def stored(nats: Any) -> list[tuple[str, CallFailed]]:
    """Message id and content of all failures on CALLS, in order."""
    bus = await nats.connect(permissions.PROVISIONER)
    js = bus.jetstream()
    found = []
    for sequence in range(1, (await js.stream_info(CALLS.name)).state.last_seq + 1):
        message = await js.get_msg(CALLS.name, sequence)
        assert message.subject == subjects.calls_failed(subjects.CallKind.CHAT)
        found.append((message.headers["Nats-Msg-Id"], msgspec.json.decode(message.data, type=CallFailed)))
    await bus.close()
    return found


@pytest.mark.parity(74)
async def test_stale_call_is_failed_once_however_often_metering_names_it(nats: Any, books: FakeMetering) -> None:
    call = stale_call()
    books.stale.append(call)
    async with janitor(settings(nats), new_process_id("janitor")):
        await until(lambda: books.asked_by.total() >= 4, "four rounds")
    ((message_id, failed),) = await stored(nats)
    assert message_id == stale_message_id(call.call_id, 1)
    assert (failed.call_id, failed.epoch, failed.account, failed.kind) == (call.call_id, 1, "did:abt:alice", "chat")
    assert (failed.code, failed.trace_id) == ("stale", "a" * 32)
    assert failed.usage is None, "nothing may be charged for a call that nobody finished"
    assert failed.failed_at.endswith("Z")


async def test_a_thousand_stale_calls_are_closed_within_one_lease(nats: Any, books: FakeMetering) -> None:
    books.stale.extend(stale_call() for _ in range(1000))
    async with janitor(settings(nats, duty_lease_s=4.0), new_process_id("janitor")):
        await until(lambda: books.asked_by.total() >= 2, "a second round", within_s=20)
    failures = await stored(nats)
    assert sorted(failed.call_id for _, failed in failures) == sorted(call.call_id for call in books.stale)


async def test_call_of_a_kind_from_the_future_does_not_keep_others_open(nats: Any, books: FakeMetering) -> None:
    known = stale_call()
    books.stale.extend([stale_call(kind="telepathy"), known])
    async with janitor(settings(nats), new_process_id("janitor")):
        await until(lambda: books.asked_by.total() >= 2, "two rounds")
    assert [failed.call_id for _, failed in await stored(nats)] == [known.call_id]


async def test_one_of_two_janitors_runs_the_duty_and_a_stop_hands_it_over_at_once(
    nats: Any, books: FakeMetering
) -> None:
    first, second = new_process_id("janitor"), new_process_id("janitor")
    slow_lease = settings(nats, duty_lease_s=40.0)
    async with contextlib.AsyncExitStack() as standing_by:
        async with janitor(slow_lease, first):
            await until(lambda: books.asked_by[first] >= 1, "the first one works")
            await standing_by.enter_async_context(janitor(settings(nats), second))
            await until(lambda: books.asked_by[first] >= 8, "eight rounds")
            assert books.asked_by[second] == 0
        waited = await until(lambda: books.asked_by[second] >= 1, "the second one takes over")
    assert waited < 5, "the lease was given up, not waited for"


async def test_closing_a_call_is_a_span_in_its_own_trace(
    nats: Any, books: FakeMetering, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[tuple[str, str]] = []

    class Recording(telemetry.Tracing):
        def start(self, name: str, parent: Any, kind: Any, attributes: Any) -> telemetry.CallSpan:
            spans.append((parent.trace_id, attributes["hub.call_id"]))
            return super().start(name, parent, kind, attributes)

    monkeypatch.setattr(app, "Tracing", Recording)
    call = stale_call()
    books.stale.append(call)
    async with janitor(settings(nats), new_process_id("janitor")):
        await until(lambda: books.asked_by.total() >= 2, "two rounds")
    assert ("a" * 32, call.call_id) in spans


@pytest.mark.parity(131)
async def test_killed_janitor_is_replaced_within_its_lease(nats: Any, books: FakeMetering) -> None:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HUB_NATS_URL": nats.url(permissions.JANITOR),
        "HUB_STALE_PERIOD_S": "0.1",
        "HUB_DUTY_LEASE_S": "1",
    }
    first = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "janitor", env=environment, stderr=subprocess.DEVNULL
    )
    await until(lambda: books.asked_by.total() >= 1, "the process works", within_s=20)
    second = new_process_id("janitor")
    async with janitor(settings(nats, duty_lease_s=1.0), second):
        first.send_signal(signal.SIGKILL)
        await first.wait()
        call = stale_call()
        books.stale.append(call)
        waited = await until(lambda: books.asked_by[second] >= 1, "the second one takes over")
        await until(lambda: books.asked_by[second] >= 2, "and has closed the call")
    assert waited < 2.5, "one lease, seen at most a quarter late, and the machine's own delay"
    assert [failed.call_id for _, failed in await stored(nats)] == [call.call_id]


async def test_unreadable_lease_is_replaced(nats: Any, books: FakeMetering) -> None:
    bus = await nats.connect(permissions.JANITOR)
    bucket = await bus.jetstream().key_value(DUTY_LEASES.name)
    await bucket.put(stale_calls.NAME, b"\x00not an entry")
    async with janitor(settings(nats), process := new_process_id("janitor")):
        await until(lambda: books.asked_by.total() >= 1, "the duty runs")
        entry = msgspec.json.decode((await bucket.get(stale_calls.NAME)).value or b"", type=Entry)
        assert entry == Entry(process, 0.5)
    await bus.close()


async def test_metering_that_comes_late_is_asked_again(nats: Any) -> None:
    call = stale_call()
    async with janitor(settings(nats), new_process_id("janitor")), fake_metering(nats, call) as late:
        await until(lambda: late.asked_by.total() >= 2, "two rounds")
    assert [failed.call_id for _, failed in await stored(nats)] == [call.call_id]


async def test_killed_nats_server_is_found_again_and_readiness_tells(own_nats: Any) -> None:
    port = own_nats.servers.folder.ports(("ops",))["ops"]

    async def answers(status: int) -> bool:
        return await http_status(port, "/readyz") == status

    async with (
        fake_metering(own_nats) as books,
        janitor(settings(own_nats, ops_port=port), new_process_id("janitor")),
    ):
        await until(lambda: books.asked_by.total() >= 1, "the duty runs")
        assert await answers(200)
        await own_nats.kill()
        await until(lambda: answers(503), "readiness is off")
        await own_nats.start()
        await until(lambda: answers(200), "readiness is on")
        call = stale_call()
        books.stale.append(call)
        before = books.asked_by.total()
        await until(lambda: books.asked_by.total() >= before + 2, "the duty goes on", within_s=20)
    assert [failed.call_id for _, failed in await stored(own_nats)] == [call.call_id]


async def test_janitor_waits_for_a_nats_server_that_starts_later(own_nats: Any) -> None:
    await own_nats.kill()
    inside = asyncio.create_task(_inside(janitor(settings(own_nats), new_process_id("janitor"))))
    await own_nats.start()
    async with fake_metering(own_nats) as late:
        await until(lambda: late.asked_by.total() >= 1, "the duty runs", within_s=20)
    inside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await inside


async def _inside(opening: contextlib.AbstractAsyncContextManager[None]) -> None:
    async with opening:
        await asyncio.Event().wait()


async def test_bug_in_a_duty_ends_the_process(nats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(stale_calls, "close_stale_calls", broken)
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told_to_stop.set)
    try:
        with pytest.raises(LookupError, match="a bug"):
            async with asyncio.timeout(10), janitor(settings(nats), new_process_id("janitor")):
                await told_to_stop.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
