"""Quiescence, and then every invariant, each from a side that the hub does not write."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from faults import invariants
from faults.invariants import Account
from payment_kit.books import PLACES
from rig.waiting import until

from campaign.kills import Kill, all_back
from campaign.load import CANARY, Keyed
from campaign.stage import HELD_TOKENS, Stage, describe
from contracts.cloudevent import UsageEvent
from contracts.permissions import ROUTER

QUIET_WITHIN_S: Final = 60.0
_HUB: Final = str(Path(sys.executable).with_name("hub"))
_CHUNK: Final = 2**20


@dataclass
class Verdict:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    async def hold(self, what: str, check: Awaitable[None]) -> None:
        """One check; one that does not hold is written down, and the others go on."""
        try:
            await check
        except AssertionError as error:
            self.violations.append(f"{what}: {error}")


async def judged(stage: Stage, kills: Sequence[Kill], keyed: Sequence[Keyed]) -> Verdict:
    """Heal everything, wait for quiet, hold the books against the journals."""
    verdict = Verdict()
    await stage.kit.fail()
    await verdict.hold("I12, everything is back", all_back(stage))
    await verdict.hold("I12, a canary call", _canary(stage))
    await verdict.hold("I12, quiet", _quiet(stage))
    if verdict.violations:
        return verdict  # of books that still move nothing can be said
    accounts = await _accounts(stage)
    for account in accounts:
        await verdict.hold(account.row["id"], invariants.check(stage.scene.hub, account, unpaid=len(account.calls)))
    await verdict.hold("I6, calls that were served and not paid", _lost(verdict, stage, accounts, kills))
    await verdict.hold("one key, one charge", _keys(accounts, keyed))
    await verdict.hold("Payment Kit", _payment_kit(verdict, stage, accounts))
    await verdict.hold("hub reconcile", _reconciled(verdict, stage))
    await verdict.hold("I11, prompts and keys", _secrets(stage))
    _count(verdict, stage, accounts)
    return verdict


async def _canary(stage: Stage) -> None:
    payer = stage.payers[0]

    async def served() -> bool:
        text = '{"pieces": 5}'
        return all([(await payer.chat(stream=n > 1, gateway=n % 2, text=text)).final for n in range(4)])

    await until(served, within_s=QUIET_WITHIN_S, every_s=0.3, what="calls of both kinds on both gateways are served")


async def _quiet(stage: Stage) -> None:
    """Nothing is open, on its way, in a spool or in the outbox."""
    waiting = {
        "open calls": "select count(*) from metering.model_call where state = 'processing'",
        "charges not reported": "select count(*) from metering.outbox where state <> 'sent'",
        "usage events not stored": """select count(*) from metering.account a left join metering.usage_sent s
                                      on s.account = a.id where a.seq > coalesce(s.seq, 0)""",
    }
    for what, sql in waiting.items():

        async def none(sql: str = sql) -> bool:
            return not await stage.scene.hub.value(sql)

        await until(none, within_s=QUIET_WITHIN_S, every_s=0.1, what=f"no {what}")
    await stage.scene.nothing_waits(within_s=QUIET_WITHIN_S)
    for name in stage.scene.hub.processes.names:
        if name.startswith(ROUTER):
            await stage.scene.nothing_left_in(name)
    spools = (stage.scene.hub.servers.folder.root / "spool").glob("*.jsonl")
    left = [path.name for path in spools if path.stat().st_size]
    assert not left, f"spools are not empty: {left}"


async def _accounts(stage: Stage) -> list[Account]:
    """Every account from every side; the stream is read once for all."""
    hub = stage.scene.hub
    events: dict[str, list[UsageEvent]] = defaultdict(list)
    for event in await invariants.usage_events(stage.scene.operator):
        events[event.data.account].append(event)
    found = []
    for payer in stage.payers:
        calls = await hub.fetch("select * from metering.model_call where account = $1 order by id", payer.account)
        ids = {str(call["id"]) for call in calls}
        account = Account(
            row=(await hub.fetch("select * from metering.account where id = $1", payer.account))[0],
            calls=calls,
            ledger=await hub.fetch("select * from metering.ledger where account = $1 order by acct_seq", payer.account),
            events=events[payer.account],
            served=[received for received in stage.scene.provider.journal if received.call_id in ids],
            told=payer.journal,
        )
        found.append(account)
    return found


async def _lost(verdict: Verdict, stage: Stage, accounts: Sequence[Account], kills: Sequence[Kill]) -> None:
    """A call that the provider finished and nobody paid is written off, and something died or was silent meanwhile."""
    lost = []
    for account in accounts:
        finished = {received.call_id for received in account.served if received.finished}
        lost += [call for call in account.calls if call["state"] == "failed" and str(call["id"]) in finished]
    deposed = _deposed(stage)
    verdict.figures["served to the end and written off"] = len(lost)
    verdict.figures["of these, because a living router was silent for a whole lease"] = 0
    for call in lost:
        began, ended = call["created_at"].timestamp(), call["settled_at"].timestamp()
        if not any(kill.at <= ended and began <= kill.back_at for kill in kills):
            assert str(call["id"]) in deposed, f"nothing died: {dict(call)}"
            verdict.figures["of these, because a living router was silent for a whole lease"] += 1


def _deposed(stage: Stage) -> set[str]:
    """Calls of routers that heard, still running them, that their lease was over: a machine without time for them."""
    names = [name for name in stage.scene.hub.processes.names if name.startswith(ROUTER)]
    lines = [line for name in names for line in stage.scene.hub.log(name).splitlines()]
    said = [json.loads(line) for line in lines if '"call ended elsewhere"' in line]
    return {line["call_id"] for line in said}


async def _keys(accounts: Sequence[Account], keyed: Sequence[Keyed]) -> None:
    calls = {call["request_id"]: call for account in accounts for call in account.calls}
    for one in keyed:
        answers = {(told.call_id, told.text, told.credits) for told in one.told if told.final}
        assert len(answers) <= 1, f"one key, several answers: {one}"
        made = [calls[told.request_id] for told in one.told if told.request_id in calls]
        paid = [call["id"] for call in made if call["state"] == "success"]
        assert len(paid) <= 1, f"one key, several paid calls {paid}: {one}"


async def _payment_kit(verdict: Verdict, stage: Stage, accounts: Sequence[Account]) -> None:
    """I4: ledger = outbox = what Payment Kit's own journal applied, each identifier once, and their sums."""
    lines = [json.loads(line) for line in stage.journal.read_text().splitlines()]
    wanted = [line["wanted"] for line in lines if line["kind"] == "meter_event"]
    applied = sorted((event["identifier"], Decimal(event["payload"]["value"])) for event in wanted)
    assert len(applied) == len({identifier for identifier, _ in applied}), "an identifier was applied twice"
    ledger = sorted(
        (f"mc_{entry['call_id']}", entry["amount"])
        for account in accounts
        for entry in account.ledger
        if entry["amount"]
    )
    assert applied == ledger, f"Payment Kit {len(applied)} and the ledger {len(ledger)} differ: " + _differing(
        applied, ledger
    )
    outbox = await stage.scene.hub.fetch("select identifier, value from metering.outbox order by identifier")
    assert [(row["identifier"], row["value"]) for row in outbox] == ledger, "outbox and ledger differ"
    events = await stage.kit.events()
    assert not [event for event in events if int(event["credit_pending"])], "I7: Payment Kit has debts"
    units = sum(int(event["credit_consumed"]) for event in events)
    spent = sum((account.row["spent"] for account in accounts), Decimal(0))
    verdict.figures |= {"credits in the ledger": spent, "credits at Payment Kit": Decimal(units).scaleb(-PLACES)}
    assert Decimal(units).scaleb(-PLACES) == spent, f"sums: {units} units at Payment Kit, {spent} spent"
    verdict.figures["meter events"] = len(applied)


def _differing(left: Sequence[tuple[str, Decimal]], right: Sequence[tuple[str, Decimal]]) -> str:
    return str(sorted(set(left) ^ set(right))[:10])


async def _reconciled(verdict: Verdict, stage: Stage) -> None:
    """The command as an operator runs it."""
    process = await asyncio.create_subprocess_exec(
        _HUB, "reconcile", "--json", env=dict(describe(stage)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, trouble = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode in {0, 1}, trouble.decode()
    report = json.loads(out)
    verdict.figures["differences of hub reconcile"] = report["differences"]
    assert (process.returncode, report["differences"], report["accepted"]) == (0, 0, 0), report["page"][:10]
    uneven = [one for one in report["comparisons"] if one["left_sum"] != one["right_sum"]]
    assert not uneven, f"sums differ: {uneven}"


async def _secrets(stage: Stage) -> None:
    """No prompt and no key in a log, in the database, in a stream or in a spool."""
    words = [CANARY.encode(), *(payer.key.encode() for payer in stage.payers)]
    hub = stage.scene.hub
    for name in hub.processes.names:
        log = hub.log(name).encode()
        assert not [word for word in words if word in log], f"a prompt or a key in the log of {name}"
    for part in ("postgres", "nats", "spool"):
        for path in (hub.servers.folder.root / part).rglob("*"):
            if path.is_file():
                found = await asyncio.to_thread(_has_any, path, words)
                assert not found, f"a prompt or a key in {path}"


def _has_any(path: Path, words: Sequence[bytes]) -> bool:
    """Whether a file has one of these words, also across the border of two reads."""
    before = b""
    longest = max(map(len, words))
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                text = before + chunk
                if any(word in text for word in words):
                    return True
                before = text[-longest:]
    except FileNotFoundError:
        return False  # a server has dropped it meanwhile
    return False


def _count(verdict: Verdict, stage: Stage, accounts: Sequence[Account]) -> None:
    calls = [call for account in accounts for call in account.calls]
    told = [told for account in accounts for told in account.told]
    hits = sum(1 for one in told if one.final)
    verdict.figures |= {
        "requests": len(told),
        "answered to the end": hits,
        "answers given again under their key": sum(1 for one in told if one.final and one.replayed),
        "connections broken under a client": sum(one.broken for one in told),
        "calls": len(calls),
        "calls paid": sum(1 for call in calls if call["credits"]),
        "answers longer than the first hold": sum(1 for call in calls if (call["output_tokens"] or 0) > HELD_TOKENS),
        "answers cut short for want of credit": sum(1 for call in calls if call["outcome"] == "credit_exhausted"),
        "credits above the hold, not charged": sum((call["overrun"] for call in calls), Decimal(0)),
        "credits written off": sum((call["written_off"] for call in calls), Decimal(0)),
        "calls failed": sum(1 for call in calls if call["state"] == "failed"),
        "attempts at the provider": len(stage.scene.provider.journal),
    }
