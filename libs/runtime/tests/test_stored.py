"""Messages of a stream, read by subject without a consumer."""

import asyncio
from typing import Any

from contracts import permissions, streams, subjects
from contracts.ids import new_call_id
from runtime.bus import Bus
from runtime.stored import StoredMessages

INBOX = "_INBOX.gateway.test.stored"


async def opened(nats: Any) -> tuple[Bus, Bus, StoredMessages]:
    """Who writes, who reads, and the reader."""
    router, gateway = await nats.connect(permissions.ROUTER), await nats.connect(permissions.GATEWAY)
    stored = StoredMessages(gateway, streams.FRAMES.name, INBOX)
    await stored.start()
    return router, gateway, stored


async def test_messages_of_one_subject_come_in_order_however_many(nats: Any) -> None:
    router, gateway, stored = await opened(nats)
    subject, other = subjects.frames(new_call_id()), subjects.frames(new_call_id())
    for number in range(600):  # more than two batches
        await router.jetstream().publish(subject, b"%d" % number)
        if number % 50 == 0:
            await router.jetstream().publish(other, b"other")
    found = await stored.read(subject)
    assert found is not None
    assert [payload for _, payload in found] == [b"%d" % number for number in range(600)]
    assert await stored.read(subject, after=found[597][0]) == found[598:]
    assert await stored.read(subject, after=found[-1][0]) == []
    assert await stored.read(subjects.frames(new_call_id())) == []
    await router.close()
    await gateway.close()


async def test_nobody_but_gateways_reads_answers(nats: Any) -> None:
    subject = subjects.frames(new_call_id())
    router, gateway, stored = await opened(nats)
    await router.jetstream().publish(subject, b"an answer")
    assert await stored.read(subject)

    async def read(user: str) -> object:
        bus = await nats.connect(user)
        own = StoredMessages(bus, streams.FRAMES.name, f"_INBOX.{user}.test.stored")
        await own.start()
        found = await own.read(subject)
        await bus.close()
        return found

    others = (permissions.METERING, permissions.JANITOR, permissions.ROUTER, permissions.OPERATOR)
    assert await asyncio.gather(*map(read, others)) == [None] * len(others)
    await router.close()
    await gateway.close()
