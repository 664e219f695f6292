"""Streams, consumers and buckets made as `contracts.streams` has them; safe to repeat, also as a watchdog."""

import asyncio
from contextlib import suppress

import structlog
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    KeyValueConfig,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BucketNotFoundError, NotFoundError

from contracts import streams

_log = structlog.get_logger("provision")


async def provision(js: JetStreamContext, kept_answers: streams.StreamSpec = streams.FRAMES) -> None:
    """Create or update everything.

    Args:
        js: as the user `provisioner`.
        kept_answers: the stream of kept answers, with an operator's age and size.

    Raises:
        nats.errors.Error: the server is away, or a stream exists with settings that cannot be changed.
    """
    for stream in (kept_answers if spec is streams.FRAMES else spec for spec in streams.STREAMS):
        config = StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            max_age=stream.max_age_s,
            max_bytes=stream.max_bytes,
            storage=StorageType.FILE if stream.storage == "file" else StorageType.MEMORY,
            duplicate_window=stream.duplicate_window_s,
            allow_direct=True,
        )
        try:
            await js.stream_info(stream.name)
        except NotFoundError:
            await js.add_stream(config)
            _log.info("stream created", stream=stream.name)
        else:
            await js.update_stream(config)
    for consumer in streams.CONSUMERS:
        await js.add_consumer(
            consumer.stream,
            ConsumerConfig(
                durable_name=consumer.durable,
                filter_subjects=list(consumer.filter_subjects),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=consumer.ack_wait_s,
                max_deliver=-1,
                max_ack_pending=consumer.max_ack_pending,
            ),
        )
    for bucket in streams.BUCKETS:
        try:
            await js.key_value(bucket.name)
        except BucketNotFoundError:
            await js.create_key_value(
                KeyValueConfig(bucket=bucket.name, ttl=bucket.ttl_s or None, history=bucket.history)
            )


async def watchdog(
    js: JetStreamContext,
    every_s: float = 30.0,
    kept_answers: streams.StreamSpec = streams.FRAMES,
    reconnected: asyncio.Event | None = None,
) -> None:
    """Provision again and again: a wiped NATS store gets its streams and consumers back without a restart.

    Args:
        js: as the user `provisioner`.
        every_s: seconds between two times.
        kept_answers: the stream of kept answers, with an operator's age and size.
        reconnected: set when the server has come back, which forgets the streams in its memory: provision at once.
    """
    back = asyncio.Event() if reconnected is None else reconnected
    while True:
        back.clear()
        try:
            await provision(js, kept_answers)
        except (Error, TimeoutError) as error:
            _log.warning("provisioning failed", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(2)
            continue
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await back.wait()
