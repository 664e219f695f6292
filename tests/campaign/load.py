"""Steady mixed load: JSON, streams, extended holds, keys repeated on both gateways, clients that leave."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from faults.clients import Payer, Told

from campaign.wishes import Wish

CANARY: Final = "canary-5f1d"
"""In every prompt; nothing on disk and no log may have it."""
_BROKEN_PAUSE_S: Final = 0.2
"""A client whose connection broke waits a moment, as SDKs do."""


@dataclass
class Keyed:
    """Requests under one Idempotency-Key."""

    account: str
    told: list[Told]


@dataclass
class Load:
    """Clients that ask one thing after another until told to stop."""

    payers: list[Payer]
    seed: int
    clients: int
    pause_s: float
    over: asyncio.Event = field(default_factory=asyncio.Event)
    keyed: list[Keyed] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """All clients; each draws from a generator of its own."""
        self._tasks = [
            asyncio.create_task(self._client(random.Random(f"{self.seed}:{number}")))  # noqa: S311 - no secret
            for number in range(self.clients)
        ]

    async def stop(self) -> None:
        """No new requests; waits for the answers of those that run."""
        self.over.set()
        await asyncio.gather(*self._tasks)

    def raise_if_broken(self) -> None:
        """A client that met something it does not know has ended; say so."""
        for task in self._tasks:
            if task.done() and not self.over.is_set():
                task.result()

    @property
    def told(self) -> list[Told]:
        """All requests."""
        return [told for payer in self.payers for told in payer.journal]

    async def _client(self, rng: random.Random) -> None:
        weights = [5, *([1] * (len(self.payers) - 1))]
        while not self.over.is_set():
            (payer,) = rng.choices(self.payers, weights)
            (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
            self.kinds[kind.__name__] += 1
            for told in await kind(self, payer, rng):
                told.lines.clear()  # the text is kept; a campaign has many
                if told.broken:
                    await asyncio.sleep(_BROKEN_PAUSE_S)
            await asyncio.sleep(rng.uniform(0, self.pause_s))

    async def json(self, payer: Payer, rng: random.Random) -> list[Told]:
        """A whole answer; some are longer than what was held for them."""
        wish = Wish(rng.choice((1, 5, 5, 60)), canary=CANARY)
        return [await payer.chat(gateway=rng.randrange(2), text=wish.prompt)]

    async def short_stream(self, payer: Payer, rng: random.Random) -> list[Told]:
        """A few pieces."""
        wish = Wish(rng.randint(1, 12), rng.uniform(0, 0.02), canary=CANARY)
        return [await payer.chat(stream=True, gateway=rng.randrange(2), text=wish.prompt)]

    async def long_stream(self, payer: Payer, rng: random.Random) -> list[Told]:
        """Many pieces: its hold is extended while it runs."""
        wish = Wish(rng.randint(60, 160), rng.uniform(0.003, 0.015), canary=CANARY)
        return [await payer.chat(stream=True, gateway=rng.randrange(2), text=wish.prompt)]

    async def same_key(self, payer: Payer, rng: random.Random) -> list[Told]:
        """One key: on both gateways at once, and once more afterwards."""
        wish, stream = Wish(rng.randint(2, 40), rng.uniform(0, 0.02), canary=CANARY), rng.random() < 0.5
        headers = {"idempotency-key": f"key-{rng.getrandbits(64):x}"}
        first = payer.begin(stream=stream, gateway=0, text=wish.prompt, headers=headers)
        await asyncio.sleep(rng.uniform(0, 0.1))
        second = payer.begin(stream=stream, gateway=1, text=wish.prompt, headers=headers)
        await asyncio.gather(payer.ended(first), payer.ended(second))
        third = await payer.chat(stream=stream, gateway=rng.randrange(2), text=wish.prompt, headers=headers)
        self.keyed.append(Keyed(payer.account, [first, second, third]))
        return [first, second, third]

    async def leaver(self, payer: Payer, rng: random.Random) -> list[Told]:
        """Hangs up somewhere in the answer."""
        wish = Wish(80, 0.01, canary=CANARY)
        told = payer.begin(stream=True, gateway=rng.randrange(2), text=wish.prompt)
        await asyncio.sleep(rng.uniform(0, 1.0))
        await payer.leave(told)
        return [told]

    async def broken_upstream(self, payer: Payer, rng: random.Random) -> list[Told]:
        """The provider's answer is cut off."""
        wish = Wish(20, 0.005, cut_at=rng.randint(1, 15), canary=CANARY)
        return [await payer.chat(stream=True, gateway=rng.randrange(2), text=wish.prompt)]


Kind = Callable[[Load, Payer, random.Random], Awaitable[list[Told]]]
_KINDS: Final[dict[Kind, int]] = {
    Load.json: 28,
    Load.short_stream: 30,
    Load.long_stream: 18,
    Load.same_key: 12,
    Load.leaver: 8,
    Load.broken_upstream: 4,
}
"""Out of a hundred."""
