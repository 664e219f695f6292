"""Cool-downs shared by all routers, through one key per provider; no call waits for it.

A router decides at once by what it saw itself, and tells the others. Times travel as Unix seconds, so a cool-down is
off by as much as two machines' clocks differ; none is believed to last longer than `COOL_DOWN_MAX_S`.
"""

import asyncio
import time
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from contracts import streams
from provider_router.routing.circuit import Routing
from provider_router.routing.health import COOL_DOWN_MAX_S, WELL, Health

_log = structlog.get_logger("routing")
_RETRY_S: Final = 1.0
_WATCH_S: Final = 60.0
"""A watch is begun anew after this long: one that a server has forgotten costs that long, and no more."""
_SAME_S: Final = 1.0
"""Ends of a cool-down that lie this close together are the same one."""


class SharedHealth(msgspec.Struct, frozen=True):
    """Value of a key in `contracts.streams.PROVIDER_HEALTH`; the key is the provider's name."""

    opened: int
    """Cool-downs in a row; 0 = the provider is well."""
    until: float
    """Unix seconds."""


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(SharedHealth)


class HealthExchange:
    """Tells other routers what this one saw, and this one what they saw."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._untold: dict[str, Health] = {}
        self._wake = asyncio.Event()

    def tell(self, provider: str, health: Health) -> None:
        """Pass on a change, soon; `Routing` calls it."""
        self._untold[provider] = health
        self._wake.set()

    async def run(self, routing: Routing) -> None:
        """Exchange until cancelled; while the bus is away every router goes by what it sees itself."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell_all())
            group.create_task(self._learn_all(routing))

    async def _tell_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                bucket = await self._js.key_value(streams.PROVIDER_HEALTH.name)
                for provider, health in list(self._untold.items()):
                    await bucket.put(provider, encoded(health, time.monotonic(), time.time()))
                    if self._untold.get(provider) is health:
                        del self._untold[provider]
            except (NatsError, TimeoutError) as error:
                _log.warning("health not shared", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _learn_all(self, routing: Routing) -> None:
        while True:
            try:
                await self._watch(await self._js.key_value(streams.PROVIDER_HEALTH.name), routing)
            except (NatsError, TimeoutError) as error:
                _log.warning("health not watched", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)

    async def _watch(self, bucket: KeyValue, routing: Routing) -> None:
        watcher = await bucket.watchall(ignore_deletes=True)
        try:
            async with asyncio.timeout(_WATCH_S):
                async for entry in watcher:
                    if entry is not None and entry.value is not None:
                        self._learn(routing, entry.key, entry.value)
        except TimeoutError:
            return
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]

    def _learn(self, routing: Routing, provider: str, value: bytes) -> None:
        if provider in self._untold:
            return  # ours is newer and comes back in its turn
        try:
            health = decoded(value, time.monotonic(), time.time())
        except msgspec.DecodeError:
            _log.warning("health not understood", provider=provider)
            return
        known = routing.health(provider)
        if known.opened != health.opened or abs(known.until - health.until) > _SAME_S:
            routing.learned(provider, health)


def encoded(health: Health, now: float, unix: float) -> bytes:
    """A provider's health for other machines.

    Args:
        health: on this process's monotonic clock.
        now: monotonic seconds.
        unix: the same moment in Unix seconds.
    """
    return _ENCODER.encode(SharedHealth(health.opened, round(unix + health.until - now, 3)))


def decoded(value: bytes, now: float, unix: float) -> Health:
    """The reverse of `encoded`, on this process's clock.

    Raises:
        msgspec.DecodeError: the bytes are something else.
    """
    shared = _DECODER.decode(value)
    if shared.opened <= 0:
        return WELL
    return Health(opened=shared.opened, until=now + min(shared.until - unix, COOL_DOWN_MAX_S))
