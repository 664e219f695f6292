"""Streams, consumers and buckets, made and made again."""

import asyncio
from typing import Any

import pytest

from contracts import permissions, streams
from runtime import provision as provisioning
from runtime.process import background
from runtime.provision import provision, watchdog


async def test_everything_is_as_the_table_says_and_again_is_no_change(nats: Any) -> None:
    bus = await nats.connect(permissions.PROVISIONER)
    js = bus.jetstream()
    await provision(js)
    for spec in streams.STREAMS:
        config = (await js.stream_info(spec.name)).config
        assert tuple(config.subjects or ()) == spec.subjects
        assert (config.max_age, config.max_bytes) == (spec.max_age_s, spec.max_bytes)
        assert config.duplicate_window == spec.duplicate_window_s
    await provision(js, streams.frames(60, 2**20))
    kept = (await js.stream_info(streams.FRAMES.name)).config
    assert (kept.max_age, kept.max_bytes, kept.storage) == (60, 2**20, "memory")
    await provision(js)
    assert (await js.stream_info(streams.FRAMES.name)).config.max_age == streams.ANSWERS_KEPT_S
    for consumer in streams.CONSUMERS:
        settle = (await js.consumer_info(consumer.stream, consumer.durable)).config
        assert tuple(settle.filter_subjects or ()) == consumer.filter_subjects
        assert (settle.max_deliver, settle.ack_wait) == (-1, consumer.ack_wait_s)
    for bucket in streams.BUCKETS:
        assert (await (await js.key_value(bucket.name)).status()).ttl in {bucket.ttl_s, None}
    await bus.close()


async def test_messages_survive_that_everything_is_made_again(nats: Any) -> None:
    bus = await nats.connect(permissions.PROVISIONER)
    janitor = await nats.connect(permissions.JANITOR)
    await janitor.jetstream().publish(f"{streams.CALLS.subjects[2][:-1]}chat", b"fact")
    await provision(bus.jetstream())
    assert (await bus.jetstream().stream_info(streams.CALLS.name)).state.messages == 1
    await janitor.close()
    await bus.close()


async def test_watchdog_brings_back_what_was_deleted(nats: Any, until: Any) -> None:
    bus = await nats.connect(permissions.PROVISIONER)
    js = bus.jetstream()
    names: list[str] = []

    async def look() -> None:
        while streams.CALLS.name not in names:
            names[:] = [info.config.name or "" for info in await js.streams_info()]

    async with background("watchdog", watchdog(js, every_s=0.1)):
        await js.delete_stream(streams.CALLS.name)
        await asyncio.wait_for(look(), 10)
    await provision(js)
    await bus.close()


async def test_watchdog_provisions_at_once_when_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was killed has forgotten the streams in its memory, kept answers among them."""
    times: asyncio.Queue[None] = asyncio.Queue()

    async def provisioned(*_: Any) -> None:
        times.put_nowait(None)

    monkeypatch.setattr(provisioning, "provision", provisioned)
    back = asyncio.Event()
    async with background("watchdog", watchdog(Any, every_s=3600, reconnected=back)):  # type: ignore[arg-type]
        await asyncio.wait_for(times.get(), 10)
        back.set()
        await asyncio.wait_for(times.get(), 10)
    assert times.empty()
