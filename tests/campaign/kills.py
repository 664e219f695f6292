"""`kill -9` of everything, again and again; what died starts again after a short random while."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import asyncpg
from rig.waiting import until

from campaign.stage import Stage


@dataclass(frozen=True, slots=True)
class Kill:
    """One fault, in Unix seconds."""

    victim: str
    at: float
    back_at: float
    """When it was ready again."""


@dataclass
class Kills:
    """Several hands, each with victims of its own that it kills in turn, in an order drawn anew each time.

    So many faults are alone, and others befall two parts at once.
    """

    stage: Stage
    rng: random.Random
    hands: int
    down_s: float
    """The longest that something stays dead, before its start."""
    between_s: float
    """The longest quiet of a hand between two faults."""
    done: list[Kill] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    """Processes that ended though nobody killed them."""
    _down: set[str] = field(default_factory=set)

    @property
    def counts(self) -> Counter[str]:
        """How often each died."""
        return Counter(kill.victim for kill in self.done)

    @property
    def overlapping(self) -> int:
        """Faults that came while another part was down."""
        ordered = sorted(self.done, key=lambda kill: kill.at)
        return sum(any(other.at < kill.at < other.back_at for other in ordered) for kill in ordered)

    async def run(self, seconds: float) -> None:
        """Every hand for so long, and each of its victims once at least."""
        until = time.monotonic() + seconds
        victims = self.stage.victims
        await asyncio.gather(*(self._hand(victims[number :: self.hands], until) for number in range(self.hands)))

    async def _hand(self, victims: list[str], until: float) -> None:
        while True:
            for name in self.rng.sample(victims, len(victims)):
                if time.monotonic() >= until and {kill.victim for kill in self.done} >= set(victims):
                    return
                await self._one(name)

    async def _one(self, name: str) -> None:
        """Kill one and bring it back."""
        for dead in sorted(set(self.stage.victims) - self.stage.running - self._down):
            self.deaths.append(f"{dead} ended by itself:\n{self.stage.scene.hub.log(dead)[-3000:]}")
            await self.stage.start(dead)
        self._down.add(name)
        at = time.time()
        await self.stage.kill(name)
        await asyncio.sleep(self.rng.uniform(0, self.down_s))
        await self.stage.start(name)
        self._down.discard(name)
        self.done.append(Kill(name, at, time.time()))
        await asyncio.sleep(self.rng.uniform(0, self.between_s))


@dataclass
class Watch:
    """Looks at the books while everything dies: no account may ever have spent and held more than it was granted."""

    stage: Stage
    looks: int = 0
    missed: int = 0
    """Looks at a database that was away."""
    overspent: list[str] = field(default_factory=list)

    async def run(self, every_s: float) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Once, over all accounts, in one snapshot."""
        sql = """select a.id, a.granted, a.spent, a.held, coalesce(l.booked, 0) as booked, coalesce(o.open, 0) as open
                 from metering.account a
                 left join (select account, sum(amount) as booked from metering.ledger group by 1) l on l.account = a.id
                 left join (select account, sum(hold) as open from metering.model_call
                            where state = 'processing' group by 1) o on o.account = a.id"""
        try:
            rows = await self.stage.scene.hub.fetch(sql)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.missed += 1
            return
        self.looks += 1
        for row in rows:
            if (
                row["spent"] + row["held"] > row["granted"]
                or row["spent"] != row["booked"]
                or row["held"] != row["open"]
            ):
                self.overspent.append(f"I7: {dict(row)}")


async def all_back(stage: Stage) -> None:
    """Wait until everything runs and is ready."""

    async def look() -> bool:
        return set(stage.victims) <= stage.running

    await until(look, within_s=30, what="everything runs")
    await stage.scene.hub.ready()
