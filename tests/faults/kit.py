"""Payment Kit in a process of its own, and what must be equal once everything is reported."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from payment_kit.books import PLACES
from rig.payment_kit import KitProcess
from rig.processes import Processes
from rig.waiting import until

from contracts.rpc import metering, reconcile
from faults.clients import Payer
from faults.scene import Scene
from runtime import rpc


class Kit(KitProcess):
    """The process, and hands to kill it."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.file = file
        self.processes = Processes()
        self.processes.add(self.program)

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self.program.name in self.processes.pids

    async def start(self, *, remembers_s: float | None = None, fail: dict[str, Any] | None = None) -> None:
        """Serve what the journal has.

        Args:
            remembers_s: for how long identifiers are known; None = for ever.
            fail: a fault that is there from the first request on.
        """
        options = {
            "PAYMENT_KIT_DEDUP_S": "" if remembers_s is None else str(remembers_s),
            "PAYMENT_KIT_FAULTS": "" if fail is None else json.dumps([fail]),
        }
        await self.processes.start(self.program.name, options)
        await self.processes.ready(self.program.name)

    async def kill(self) -> None:
        """SIGKILL."""
        await self.processes.kill(self.program.name)


def journal(kit: Kit, payer: Payer) -> list[dict[str, Any]]:
    """Meter events of an account as Payment Kit wrote them down, whether it runs or not; repeats too."""
    customer = payer.account.rpartition(":")[2]
    lines = [json.loads(line) for line in kit.file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    events = [line["wanted"] for line in lines if line["kind"] == "meter_event"]
    return [event for event in events if event["payload"]["customer_id"] == customer]


async def all_sent(scene: Scene, payer: Payer) -> bool:
    """Whether nothing of an account waits or is parked."""
    sql = "select count(*) from metering.outbox where account = $1 and state <> 'sent'"
    return not await scene.hub.value(sql, payer.account)


async def even(scene: Scene, kit: Kit, payer: Payer, within_s: float = 30.0) -> Decimal:
    """Wait until everything is reported; ledger and Payment Kit then agree call by call, to the last decimal.

    Returns:
        What the account was charged.
    """

    async def look() -> bool:
        return await all_sent(scene, payer)

    await until(look, within_s=within_s, what="every charge is reported")
    await scene.at_rest(payer, unpaid=len(payer.journal))
    rows = await scene.hub.fetch(
        "select call_id::text as id, amount from metering.ledger where account = $1 and amount > 0", payer.account
    )
    ledger = {f"mc_{row['id']}": row["amount"] for row in rows}
    reported = [(event["identifier"], Decimal(event["payload"]["value"])) for event in journal(kit, payer)]
    assert sorted(reported) == sorted(ledger.items()), "each identifier once, with the ledger's value"
    total = sum(ledger.values(), Decimal(0))
    assert total == await scene.hub.value("select spent from metering.account where id = $1", payer.account)
    events = [event for event in await kit.events() if event["identifier"] in ledger]
    units = sum(int(event["credit_consumed"]) + int(event["credit_pending"]) for event in events)
    assert Decimal(units).scaleb(-PLACES) == total
    found = await reconciled(scene)
    assert not found.differences, [(each.check, each.account, each.detail) for each in found.page]
    return total


async def reconciled(scene: Scene) -> reconcile.ReconcileReport:
    """What `hub reconcile` finds, its first thousand differences."""
    wanted = reconcile.ReconcileStart(scope="all", started_by="test")
    started = await rpc.ask(
        scene.operator, metering.SERVICE, reconcile.RECONCILE_START, wanted, reconcile.ReconcileStarted, timeout_s=10.0
    )
    question = reconcile.ReconcileGet(run_id=started.run_id, limit=1000)

    async def ended() -> reconcile.ReconcileReport | None:
        report = await rpc.ask(
            scene.operator, metering.SERVICE, reconcile.RECONCILE_GET, question, reconcile.ReconcileReport,
            timeout_s=10.0,
        )  # fmt: skip
        return report if report.state != "running" else None

    report = await until(ended, within_s=30.0, what="the comparison ends")
    assert report is not None
    assert report.state == "done", report.error
    return report
