"""A stream is read page by page, without a consumer, from where and up to where the reader wants."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from nats.errors import Error

from contracts import permissions
from contracts.streams import CALLS
from contracts.subjects import CallKind, calls_failed
from runtime import stream_pages
from runtime.bus import Bus
from runtime.stream_pages import pages

SUBJECT = calls_failed(CallKind.CHAT)


async def filled(nats: Any, count: int) -> tuple[Bus, str]:
    """A metering, and an inbox of it; the stream has so many messages."""
    router = await nats.connect(permissions.ROUTER)
    answers = await asyncio.gather(*(router.call(SUBJECT, b"message %d" % number, 5) for number in range(count)))
    assert not [answer for answer in answers if b"error" in answer]
    await router.close()
    bus = await nats.connect(permissions.METERING)
    return bus, "_INBOX.metering.test.stored"


async def test_all_messages_come_in_order_a_page_at_a_time(nats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_pages, "_PAGE", 7)
    bus, inbox = await filled(nats, 20)
    read = [page async for page in pages(bus, inbox, CALLS.name)]
    assert [len(page) for page in read] == [7, 7, 6]
    messages = [message for page in read for message in page]
    assert [message.sequence for message in messages] == list(range(1, 21))
    assert {message.subject for message in messages} == {SUBJECT}
    assert {message.payload for message in messages} == {b"message %d" % number for number in range(20)}
    up_to = [message.sequence async for page in pages(bus, inbox, CALLS.name, last=10) for message in page]
    assert up_to == list(range(1, 11))
    await bus.close()


async def test_messages_from_a_time_on_and_messages_that_are_gone(nats: Any) -> None:
    bus, inbox = await filled(nats, 5)
    provisioner = await nats.connect(permissions.PROVISIONER)
    js = provisioner.jetstream()
    await js.delete_msg(CALLS.name, 2)
    read = [message.sequence async for page in pages(bus, inbox, CALLS.name) for message in page]
    assert read == [1, 3, 4, 5]
    assert [page async for page in pages(bus, inbox, CALLS.name, since=datetime(2100, 1, 1, tzinfo=UTC))] == []
    whole = [page async for page in pages(bus, inbox, CALLS.name, since=datetime(2020, 1, 1, tzinfo=UTC))]
    assert [message.sequence for page in whole for message in page] == read
    await js.purge_stream(CALLS.name)
    assert [page async for page in pages(bus, inbox, CALLS.name)] == []
    await provisioner.close()
    await bus.close()


async def test_a_stream_that_is_away_is_an_error_and_not_an_empty_one(nats: Any) -> None:
    bus, inbox = await filled(nats, 1)
    provisioner = await nats.connect(permissions.PROVISIONER)
    await provisioner.jetstream().delete_stream(CALLS.name)
    with pytest.raises(Error):
        await anext(pages(bus, inbox, CALLS.name))
    await nats.provision()
    await provisioner.close()
    await bus.close()
