"""Where a campaign plays: a hub with copies of its services, Payment Kit, one provider, and accounts of many sizes."""

import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from faults.clients import Payer
from faults.scene import QUICK, Scene
from rig.hub import started
from rig.payment_kit import KitProcess
from rig.processes import Processes
from rig.provider import FakeProvider
from rig.servers import make_streams

from campaign.wishes import granted
from contracts.permissions import GATEWAY, JANITOR, METERING, OPERATOR, PROVISIONER, ROUTER
from hub_local.credentials import ADMIN
from hub_local.state import HubState

KIT: Final = "payment-kit"
TROUBLES: Final = (
    {"action": "lose_reply", "p": 0.05},
    {"action": "error", "status": 503, "p": 0.05},
    {"action": "drop", "p": 0.05},
)
"""Of Payment Kit all the while: a seventh of what is reported to it goes wrong."""
PAIRS: Final = {GATEWAY: 2, ROUTER: 2, METERING: 2, JANITOR: 2}
HELD_TOKENS: Final = 20
SETTINGS: Final = {"HUB_HOLD_OUTPUT_TOKENS": str(HELD_TOKENS), "HUB_TOKENIZER_AT_START": "true"}
"""Long answers extend their holds several times; and a router that reads its tokenizer late is silent meanwhile."""
RICH: Final = "100000"
POOR: Final = ("0.6", "2", "5")


@dataclass
class Stage:
    """Everything that a campaign touches."""

    scene: Scene
    kit: KitProcess
    processes: Processes
    """Payment Kit's."""
    journal: Path
    """Payment Kit's."""
    payers: list[Payer]
    """The first is the busiest; the last ones have little credit."""

    @property
    def victims(self) -> list[str]:
        """Everything that can be killed."""
        return [*self.scene.hub.processes.names, "nats", "postgres", KIT]

    @property
    def running(self) -> set[str]:
        """What runs now."""
        return {*self.scene.hub.pids, *self.processes.pids}

    async def kill(self, name: str) -> None:
        """SIGKILL; PostgreSQL with all of its backends at once."""
        if name == KIT:
            await self.processes.kill(KIT)
        elif name == "postgres":
            await self.scene.kill_postgres()
        else:
            await self.scene.hub.kill(name)

    async def start(self, *names: str) -> None:
        """Start again; returns when they are ready."""
        if KIT in names:
            await self.processes.start(KIT)
            await self.processes.ready(KIT)
            await self.kit.fail(*TROUBLES)
        others = [name for name in names if name != KIT]
        if others:
            await self.scene.hub.start(*others)
        if "nats" in others:
            await make_streams(self.scene.hub.servers)  # as the supervisor does: streams in memory are gone
            await self.scene.shorten_ack_wait()


@asynccontextmanager
async def staged(
    root: Path, template: Path | None, rng: random.Random, *, counts: Mapping[str, int], rich: int
) -> AsyncIterator[Stage]:
    """A stage that is ready.

    Args:
        root: an empty folder.
        template: see `rig.servers.opened`.
        rng: draws what little credit some accounts have.
        counts: processes by service.
        rich: accounts whose credit suffices; as many again as `POOR` have less.
    """
    journal = root / "payment-kit.jsonl"
    kit = KitProcess(journal)
    processes = Processes()
    processes.add(kit.program)
    provider = await FakeProvider().start()
    provider.always(granted)
    try:
        await processes.start(KIT)
        await processes.ready(KIT)
        env = {**QUICK, **SETTINGS, **provider.env("fake"), **kit.env}
        hub = await started(root / "hub", template, counts=counts, env=env)
        try:
            scene = await Scene.set(hub, provider)
            payers = [await scene.payer(RICH) for _ in range(rich)]
            payers += [await scene.payer(amount) for amount in rng.sample(POOR, len(POOR))]
            await kit.fail(*TROUBLES)
            yield Stage(scene, kit, processes, journal, payers)
            await scene.close()
        finally:
            await hub.close()
    finally:
        await provider.close()
        await processes.close([KIT])


def describe(stage: Stage) -> Mapping[str, str]:
    """Write `hub.json`, so that the `hub` command finds this hub; returns the command's environment."""
    servers = stage.scene.hub.servers
    HubState(
        supervisor_pid=os.getpid(),
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        urls=stage.scene.hub.urls,
        ops={},
        nats_url=servers.credentials.nats_url(OPERATOR, servers.ports.nats),
        nats_provision_url=servers.credentials.nats_url(PROVISIONER, servers.ports.nats),
        nats_monitor_url=f"http://127.0.0.1:{servers.ports.nats_http}",
        database_url=servers.credentials.dsn(ADMIN, servers.ports.postgres),
        database_urls={},
    ).write(servers.folder, [])
    return {"PATH": os.environ["PATH"], "HUB_DATA_DIR": str(servers.folder.root)}
