"""`hub reconcile` and its neighbours as an operator runs them, on a hub that was started with `hub up`."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from rig.embedded import EmbeddedHub, seeded
from rig.waiting import until

HUB = str(Path(sys.executable).with_name("hub"))
WITHIN_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hub(tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None) -> AsyncIterator[EmbeddedHub]:
    hub = EmbeddedHub(seeded(tmp_path_factory.mktemp("reconcile") / "data", template_folder))
    await hub.start()
    try:
        await hub.ready()
        for number in range(2):
            code, _, trouble = await run(hub, "chat", f"call number {number}")
            assert code == 0, trouble
        yield hub
    finally:
        await hub.close()


async def run(hub: EmbeddedHub, *arguments: str, data_dir: str = "") -> tuple[int, str, str]:
    """Exit code, output and complaints of a `hub` command."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        HUB, *arguments, env={**keep, "HUB_DATA_DIR": data_dir or str(hub.data_dir)}, cwd=hub.data_dir.parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, trouble = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), trouble.decode()


async def execute(hub: EmbeddedHub, statement: str) -> None:
    connection = await asyncpg.connect(hub.state()["database_url"])
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_agreeing_books_end_with_0_corrupted_ones_with_1_until_they_are_repaired(hub: EmbeddedHub) -> None:
    async def settled() -> bool:
        code, out, _ = await run(hub, "reconcile")
        return code == 0 and "0 differences, 0 accepted" in out

    await until(settled, within_s=30, what="the books agree")

    await execute(hub, "update metering.ledger set amount = amount + 1 where acct_seq = 1")
    await execute(hub, "update metering.account set held = held + 0.5 where seq = 2")
    code, out, trouble = await run(hub, "reconcile")
    assert (code, trouble) == (1, "")
    for name in ("ledger_amount", "held", "spent"):
        assert f"\n{name}\t" in out
    assert "hub reconcile --repair " in out

    code, out, trouble = await run(hub, "reconcile", "--repair", "all", "--reason", "a test")
    assert (code, trouble) == (0, "")
    assert "held moved by -0.5000000000" in out
    code, out, _ = await run(hub, "reconcile", "--json")
    (left,) = json.loads(out)["page"]
    assert (code, left["check"]) == (1, "event_amount"), "the event still says what was charged"
    assert (await run(hub, "reconcile", "--accept", left["id"]))[0] == 2
    assert (await run(hub, "reconcile", "--accept", left["id"], "--reason", "The row was corrupted."))[0] == 0
    code, out, _ = await run(hub, "reconcile", "--recent")
    assert code == 0, out
    assert "0 differences, 1 accepted" in out


async def test_what_could_not_be_compared_ends_with_2(hub: EmbeddedHub, tmp_path: Path) -> None:
    for arguments in (
        ("reconcile",),
        ("reconcile", "--verify"),
        ("recompute", "--from", "2026-01-01", "--to", "2026-02-01"),
    ):
        code, _, trouble = await run(hub, *arguments, data_dir=str(tmp_path))
        assert (code, "no hub runs" in trouble) == (2, True)
    assert (await run(hub, "reconcile", "--repair", "000000000000"))[0] == 2
    code, _, trouble = await run(hub, "recompute", "--from", "someday", "--to", "2026-02-01")
    assert (code, trouble) == (2, "hub: since: `since` is an ISO 8601 time.\n")


async def test_the_chain_of_closed_days_and_a_period_priced_again_end_with_0(hub: EmbeddedHub) -> None:
    code, out, _ = await run(hub, "reconcile", "--verify")
    assert code == 0, out
    today = datetime.now(UTC).date()
    period = ("--from", str(today - timedelta(days=1)), "--to", str(today + timedelta(days=1)))
    code, out, trouble = await run(hub, "recompute", *period)
    assert code == 0, out + trouble
    assert "2 calls, charged " in out
    assert "0 differences, 0 adjusted" in out


async def test_a_bill_is_compared_with_what_the_provider_served(hub: EmbeddedHub, tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    bill = tmp_path / "demo.csv"
    bill.write_text(f"Date,Model,Requests\n{today},echo,2\n")
    code, out, trouble = await run(hub, "reconcile", "--bill", str(bill))
    assert code == 0, out + trouble
    bill.write_text(f"Date,Model,Requests\n{today},echo,3\n")
    code, out, _ = await run(hub, "reconcile", "--bill", str(bill), "--tolerance", "10%")
    assert code == 1
    assert f"{today}\techo\trequests\t3\t2\t+1\tdiffers" in out
    bill.write_text("no,bill\n")
    assert (await run(hub, "reconcile", "--bill", str(bill)))[0] == 2


async def test_status_shows_each_duty_with_its_last_and_next_run(hub: EmbeddedHub) -> None:
    duties = {
        "stale-calls", "grants", "expired-claims", "partitions", "reconciliation", "closing", "parked", "rate-check",
    }  # fmt: skip

    async def shown() -> list[dict[str, str]] | None:
        _, out, _ = await run(hub, "status", "--json")
        found = json.loads(out)["duties"]
        done = {each["duty"] for each in found if each["result"] == "done"}  # a first run may come before its owner
        return found if done == duties else None

    found = await until(shown, within_s=90, what="each duty has run")
    assert found is not None
    assert all(each["next_at"] > each["ended_at"] for each in found)
    code, out, _ = await run(hub, "status")
    assert code == 0
    assert "\nreconciliation\t" in out


@pytest.mark.parity(108)
async def test_a_rate_is_taken_away_by_its_pattern(hub: EmbeddedHub) -> None:
    code, _, trouble = await run(hub, "rates", "set", "mine/a", "--input", "1", "--output", "2")
    assert code == 0, trouble
    code, out, trouble = await run(hub, "rates", "remove", "mine/a")
    assert (code, "it has no price and is not served" in out) == (0, True), trouble
    code, out, _ = await run(hub, "rates", "history", "mine/a")
    assert (code, "removed" in out, "input=1 output=2" in out) == (0, True, True)
    code, _, trouble = await run(hub, "rates", "remove", "mine/a")
    assert (code, "mine/a has no rate" in trouble) == (1, True)


@pytest.mark.parity(69)
async def test_the_unit_of_credits_is_converted_and_the_books_still_agree(hub: EmbeddedHub) -> None:
    """The last one here: afterwards credits are worth something else."""

    async def convert(*arguments: str) -> str:
        code, out, trouble = await run(hub, "credits", "convert", "0.0000025", *arguments)
        assert code == 0, out + trouble
        return out

    code, _, trouble = await run(hub, "rates", "set", "demo/echo", "--input", "0.004", "--output", "0.008")
    assert code == 0, trouble
    tried = await convert()
    assert "1 rates would change; nothing was changed" in tried
    applied = await convert("--apply")
    assert "1 accounts converted, 0 wait" in applied
    assert "1 rates changed" in applied
    assert (await run(hub, "chat", "hello"))[0] == 1, "calls are refused meanwhile"
    assert "calls are admitted" in await convert("--finish")

    async def admitted() -> bool:
        return (await run(hub, "chat", "hello"))[0] == 0

    await until(admitted, within_s=30, what="calls are admitted")

    async def agree() -> bool:
        code, out, _ = await run(hub, "reconcile")
        return code == 0 and "0 differences" in out

    await until(agree, within_s=30, what="the books agree")
