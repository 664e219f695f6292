"""The bus against a real server: what it borrows from nats-py's inside must work, also after a reconnect."""

import asyncio
from typing import Any

import pytest
import structlog
from nats import errors

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc import metering, model_calls
from runtime import rpc
from runtime.bus import Bus, header_block, no_responders, opened

SUBJECT = subjects.rpc(metering.SERVICE, "echo")
NOBODY = subjects.rpc(metering.SERVICE, "nobody")
"""Not listened to in any test: the server notices a closed connection a little later than its client."""


def echo(bus: Bus, received: list[bytes]) -> Any:
    def listener(_subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        received.append(payload)
        if reply:
            bus.send(reply.decode(), payload)

    return listener


async def test_messages_arrive_in_order_inside_the_read(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    received: list[bytes] = []
    await owner.listen(SUBJECT, echo(owner, received), queue="metering")
    await owner.flush()
    sent = [b"%d" % number for number in range(2000)]
    for payload in sent:
        asker.send(SUBJECT, payload)
    await until(lambda: len(received) == 2000, "all messages")
    assert received == sent
    await owner.close()
    await asker.close()


async def test_what_is_listened_to_no_more_is_not_heard_and_leaves_nothing(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    before, after = [], []
    heard = await owner.listen(SUBJECT, lambda _s, _r, payload, _h: before.append(payload))
    await owner.flush()
    listeners = len(owner._listeners)
    asker.send(SUBJECT, b"1")
    await until(lambda: before, "the first message")
    await owner.unlisten(heard)
    await owner.listen(SUBJECT, lambda _s, _r, payload, _h: after.append(payload))
    await owner.flush()
    asker.send(SUBJECT, b"2")
    await until(lambda: after, "the second message")
    assert (before, after, len(owner._listeners)) == ([b"1"], [b"2"], listeners)
    await owner.close()
    await owner.unlisten(heard)
    await asker.close()


class Recording:
    """A transport that remembers what was written."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.transport.write(data)

    def writelines(self, lines: list[bytes]) -> None:
        self.written.extend(lines)
        self.transport.writelines(lines)


async def test_a_flush_asks_after_everything_before_it_was_written(nats: Any) -> None:
    """Or its answer says nothing of a subscription, and the first request finds nobody."""
    owner = await nats.connect(permissions.METERING)
    recording = Recording(owner._transport)
    owner._transport = recording
    await owner.listen(SUBJECT, echo(owner, []), queue="metering")
    await owner.flush()
    words = [line.split(b" ")[0].strip() for line in recording.written]
    assert words.index(b"SUB") < words.index(b"PING")
    await owner.close()


async def test_raw_headers_come_as_they_were_sent(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    seen: list[bytes | None] = []
    await owner.listen(SUBJECT, lambda _s, _r, _p, headers: seen.append(headers))
    await owner.flush()
    block = header_block(Nats_Msg_Id="abc", Hub_Epoch="1")
    asker.send(SUBJECT, b"with", headers=block)
    asker.send(SUBJECT, b"without")
    await until(lambda: len(seen) == 2, "both messages")
    assert bytes(seen[0] or b"").rstrip() == block.rstrip()
    assert not seen[1]
    await owner.close()
    await asker.close()


async def test_listener_that_raises_is_logged_and_the_next_message_goes_on(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    received: list[bytes] = []

    def listener(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        if payload == b"bad":
            raise LookupError(payload)
        received.append(payload)

    await owner.listen(SUBJECT, listener)
    await owner.flush()
    with structlog.testing.capture_logs() as logs:
        for payload in (b"one", b"bad", b"two"):
            asker.send(SUBJECT, payload)
        await until(lambda: received == [b"one", b"two"], "the good messages")
    assert [entry["event"] for entry in logs] == ["listener failed"]
    await owner.close()
    await asker.close()


async def test_question_is_answered_once(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    await owner.listen(SUBJECT, echo(owner, []))
    await owner.flush()
    replies: list[bytes | None] = []
    for number in range(100):
        asker.ask(SUBJECT, b"%d" % number, lambda payload, _headers: replies.append(payload), timeout_s=5)
    await until(lambda: len(replies) == 100, "all replies")
    assert sorted(replies, key=lambda reply: int(reply or -1)) == [b"%d" % number for number in range(100)]
    assert await asker.call(SUBJECT, b"again", 5) == b"again"
    await owner.close()
    await asker.close()


async def test_question_without_listener_says_so_at_once(nats: Any, until: Any) -> None:
    asker = await nats.connect(permissions.JANITOR)
    replies: list[tuple[bytes | None, bool]] = []
    asker.ask(NOBODY, b"?", lambda payload, headers: replies.append((payload, no_responders(headers))), timeout_s=30)
    await until(lambda: bool(replies), "the server's word", within_s=5)
    assert replies == [(b"", True)]
    with pytest.raises(errors.NoRespondersError):
        await asker.call(NOBODY, b"?", 30)
    with pytest.raises(HubError) as refused:
        await rpc.ask(asker, metering.SERVICE, "nobody", model_calls.StaleCalls(), model_calls.StaleReply, timeout_s=30)
    assert refused.value.code is ErrorCode.SERVICE_UNAVAILABLE
    assert refused.value.retry_after_s
    await asker.close()


async def test_silence_becomes_a_timeout_exactly_once_and_a_late_reply_is_dropped(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    questions: list[str] = []
    await owner.listen(SUBJECT, lambda _s, reply, _p, _h: questions.append(reply.decode()))
    await owner.flush()
    replies: list[bytes | None] = []
    asker.ask(SUBJECT, b"?", lambda payload, _headers: replies.append(payload), timeout_s=0.1)
    await until(lambda: replies == [None], "the time-out")
    owner.send(questions[0], b"late")
    with pytest.raises(TimeoutError):
        await asker.call(SUBJECT, b"?", 0.1)
    assert replies == [None]
    await owner.close()
    await asker.close()


async def test_listeners_and_questions_work_after_the_server_was_killed(own_nats: Any, until: Any) -> None:
    owner, asker = await own_nats.connect(permissions.METERING), await own_nats.connect(permissions.JANITOR)
    received: list[bytes] = []
    await owner.listen(SUBJECT, echo(owner, received), queue="metering")
    await owner.flush()
    assert await asker.call(SUBJECT, b"before", 5) == b"before"
    await own_nats.kill()
    await until(lambda: not (owner.is_connected or asker.is_connected), "both see it")
    asker.send(SUBJECT, b"while away")  # kept until the server is back; nobody may be listening there yet
    await own_nats.start()
    await until(lambda: owner.is_connected and asker.is_connected, "both are back")
    await owner.flush()
    assert await asker.call(SUBJECT, b"after", 5) == b"after"
    assert received[-1] == b"after"
    await owner.close()
    await asker.close()


async def test_what_was_sent_while_the_server_was_away_is_stored_after_it_is_back(own_nats: Any, until: Any) -> None:
    bus = await own_nats.connect(permissions.JANITOR)
    await own_nats.kill()
    await until(lambda: not bus.is_connected, "the bus sees it")
    for number in range(3):
        bus.send(subjects.calls_failed(subjects.CallKind.CHAT), b"%d" % number)
    await own_nats.start()
    await until(lambda: bus.is_connected, "the bus is back")
    await bus.flush()
    assert [payload async for payload in _stored(own_nats, 3)] == [b"0", b"1", b"2"]
    await bus.close()


async def _stored(nats: Any, count: int) -> Any:
    reader = await nats.connect(permissions.PROVISIONER)
    for sequence in range(1, count + 1):
        yield (await reader.jetstream().get_msg("CALLS", sequence)).data
    await reader.close()


def fill(bus: Bus) -> None:
    for _ in range(40):
        bus.send(SUBJECT, bytes(2**20))


async def test_full_buffer_and_too_large_message_are_refused(own_nats: Any, until: Any) -> None:
    bus = await own_nats.connect(permissions.JANITOR)
    with pytest.raises(errors.MaxPayloadError):
        bus.send(SUBJECT, bytes(8 * 2**20 + 1))
    await own_nats.kill()
    await until(lambda: not bus.is_connected, "the bus sees it")
    with pytest.raises(errors.OutboundBufferLimitError):
        fill(bus)
    await own_nats.start()
    await until(lambda: bus.is_connected, "the bus is back")
    await bus.flush()
    bus.send(SUBJECT, b"taken again")
    await bus.close()
    with pytest.raises(errors.ConnectionClosedError):
        bus.send(SUBJECT, b"closed")


async def test_opening_waits_for_a_server_that_is_still_starting(own_nats: Any) -> None:
    await own_nats.kill()
    opening = asyncio.create_task(own_nats.connect(permissions.JANITOR))
    await own_nats.start()
    bus = await opening
    assert bus.is_connected
    await bus.close()


async def test_wrong_password_is_told_in_the_log(nats: Any, until: Any) -> None:
    url = nats.url(permissions.JANITOR, password="wrong")
    with structlog.testing.capture_logs() as logs:
        opening = asyncio.create_task(opened(url, name="stranger", inbox_prefix="_INBOX.janitor.stranger"))
        await until(lambda: any("authorization violation" in str(entry).lower() for entry in logs), "the reason")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert "wrong" not in str(logs)
