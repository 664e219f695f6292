"""The whole hub with Payment Kit in a process of its own; both are killed. What the ledger has is there, once.

Rows 17 to 20 of the crash table are here.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import pytest_asyncio
from rig.payment_kit import KEY
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.permissions import OPERATOR
from contracts.rpc import metering, payments
from contracts.rpc.payments import PaymentPause, PaymentRetried, PaymentRetry, PaymentStatus, PaymentStatusGet
from faults.clients import Payer
from faults.conftest import SetScene
from faults.kit import Kit, all_sent, even, journal, reconciled
from faults.scene import Scene
from runtime import rpc
from runtime.component_call import AppKey, signed_headers

CALLBACK: Final = "/api/payment/callback"
SHORT_CLAIM: Final = {"HUB_PAYMENT_KIT_TIMEOUT_S": "0.4", "HUB_PAYMENT_KIT_SERVER_S": "0"}
"""A row that a killed process had taken is picked again after 1.6 s."""
HOUR_S: Final = 3.6
"""Of a scene whose longest wait between two tries is 0.3 s instead of 300."""
REMEMBERS_S: Final = 2.0
"""How long a forgetful Payment Kit knows an identifier."""
pytestmark = [pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    kit = Kit(tmp_path_factory.mktemp("payment-kit") / "journal.jsonl")
    await kit.start()
    yield kit
    await kit.processes.close([kit.program.name])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one_scene(set_scene: SetScene, kit: Kit) -> Scene:
    return await set_scene(env=kit.env)


@pytest_asyncio.fixture(loop_scope="session")
async def scene(one_scene: Scene, kit: Kit) -> AsyncIterator[Scene]:
    if kit.runs:
        await kit.kill()  # with its faults, and with a memory that a test made short
    await kit.start()
    await one_scene.mend()
    yield one_scene


async def command(scene: Scene, folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a `hub` command that is pointed at the scene."""
    credentials, ports = scene.hub.servers.credentials, scene.hub.servers.ports
    urls = dict.fromkeys(("nats_provision_url", "nats_monitor_url", "database_url"), "")
    state = {
        "supervisor_pid": os.getpid(), "started_at": "", "urls": scene.hub.urls, "ops": {}, "database_urls": {},
        "nats_url": credentials.nats_url(OPERATOR, ports.nats), "processes": [], **urls,
    }  # fmt: skip
    (folder / "hub.json").write_text(json.dumps(state))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("hub"), *arguments, env={**os.environ, "HUB_DATA_DIR": str(folder)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.parity(69)
async def test_an_operator_converts_the_unit_over_the_death_of_metering_and_every_grant_has_one_new_one(
    scene: Scene, kit: Kit, tmp_path: Path
) -> None:
    """The first one here: afterwards charges are in US dollars, as they are for all others."""
    old, older = "agent-hub-ai-meter", {"HUB_PAYMENT_KIT_UNIT": "credits"}
    payer = await scene.payer("1")
    await kit.control("meter", {"event_name": old, "unit": "AIGNE Hub Credits"})
    dids = [payer.account.rpartition(":")[2], "z1second", "z1third"]
    for did in dids:
        await kit.control("grant", {"did": did, "meter": old, "amount": "400.5"})
    await scene.restart("metering", {**older, "HUB_FAIL": "metering.after_grant_made:kill:after=1"})

    async def served() -> bool:
        return (await payer.chat()).final

    await until(served, within_s=20, what="a call is paid in old credits")
    code, out = await command(scene, tmp_path, "credits", "convert", "1")
    assert (code, "3 of 3 grants" in out) == (0, True), out
    code, out = await command(scene, tmp_path, "credits", "convert", "1", "--apply")
    assert (code, "does not answer" in out) == (1, True), out
    assert await scene.hub.gone("metering") == -9
    begun = [grant for grant in await kit.control("grants") if "migratedFromGrantId" in grant["metadata"]]
    assert begun, "a new grant was made and the old one has not ended"
    await scene.hub.processes.start("metering", older)
    await scene.hub.ready("metering")
    code, out = await command(scene, tmp_path, "credits", "convert", "1", "--apply")
    assert (code, "3 of 3 grants moved" in out, "HUB_PAYMENT_KIT_UNIT=USD" in out) == (0, True, True), out
    assert not (await payer.chat()).final, "calls are refused until it is finished"
    grants = await kit.control("grants")
    made = [grant["metadata"].get("migratedFromGrantId") for grant in grants]
    assert sorted(filter(None, made)) == sorted(grant["id"] for grant in grants if grant["currency_id"] == "pc_2")

    await scene.restart("metering", {})
    code, out = await command(scene, tmp_path, "credits", "convert", "1", "--finish")
    assert (code, "calls are admitted" in out) == (0, True), out
    await until(served, within_s=20, what="a call is paid in US dollars")
    assert await even(scene, kit, payer) > 0
    assert {event["event_name"] for event in journal(kit, payer)} == {old, f"{old}-v2"}
    async with httpx2.AsyncClient(base_url=scene.hub.url, headers=scene.hub.headers, trust_env=False) as http:
        told = (await http.get("/api/migration/status")).json()
        again = await http.post("/api/migration/grants", json={"baseCreditPrice": 1, "dryRun": True}, timeout=30)
    assert (told["paymentRunning"], told["migrationEnabled"], told["oldMeter"]["currencyId"]) == (True, True, "pc_2")
    assert (told["totalGrantCount"], told["unmigratedGrantCount"]) == (3, 0)
    assert again.json()["success"], again.text
    assert again.json()["summary"] == {"total": 3, "processed": 3, "migrated": 0, "skipped": 3, "errors": 0}


async def killed_while_reporting(scene: Scene, payer: Payer, point: str) -> None:
    """Four settled calls wait together, then metering dies at the third of them and is started again."""
    await pause(scene, paused=True)
    await scene.restart("metering", {**SHORT_CLAIM, "HUB_FAIL": f"{point}:kill:after=2"})
    told = await asyncio.gather(*(payer.chat() for _ in range(4)))
    assert all(one.final for one in told)
    await scene.at_rest(payer)
    await pause(scene, paused=False)
    await scene.died("metering")


async def pause(scene: Scene, *, paused: bool) -> None:
    await rpc.ask(scene.operator, metering.SERVICE, payments.PAYMENT_PAUSE, PaymentPause(paused=paused), PaymentStatus)


@pytest.mark.crash(17)
async def test_row_17_metering_dies_before_the_post_and_the_row_is_picked_again(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    await killed_while_reporting(scene, payer, "metering.before_post")
    assert len(journal(kit, payer)) < 3
    assert not await all_sent(scene, payer)
    await scene.hub.start("metering")
    assert await even(scene, kit, payer) > 0


@pytest.mark.crash(18)
@pytest.mark.parity(51, 58, 60, 61)
async def test_row_18_metering_dies_between_post_and_mark_and_bills_once(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    await killed_while_reporting(scene, payer, "metering.after_post")
    applied = {event["identifier"] for event in journal(kit, payer)}
    waiting = await scene.hub.fetch("select identifier from metering.outbox where state = 'pending'")
    assert applied & {row["identifier"] for row in waiting}, "Payment Kit has what the outbox does not know as sent"
    await scene.hub.start("metering")
    assert await even(scene, kit, payer) > 0


@pytest.mark.crash(19)
async def test_row_19_answer_is_lost_or_late_after_the_event_was_applied(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    faults: list[dict[str, Any]] = [
        {"action": "lose_reply"},
        {"action": "error_after", "status": 504},
        {"action": "hang_after", "seconds": 2},
    ]
    await kit.fail(*({**fault, "times": 2} for fault in faults))
    told = await asyncio.gather(*(payer.chat() for _ in range(6)))
    assert all(one.final for one in told)
    assert await even(scene, kit, payer) > 0
    assert await kit.hits() == {fault["action"]: 2 for fault in faults}
    tries = await scene.hub.value("select max(tries) from metering.outbox where account = $1", payer.account)
    assert tries > 1


async def forgotten(scene: Scene, kit: Kit, payer: Payer) -> list[str]:
    """Two calls whose events Payment Kit applied without an answer, and two that never came; then it goes away for
    longer than it remembers identifiers. Metering is told that it remembers them for a second."""
    await scene.restart("metering", {"HUB_PAYMENT_KIT_DEDUP_S": str(REMEMBERS_S / 2)})
    await kit.fail({"action": "lose_reply", "times": 2}, {"action": "drop"})
    told = await asyncio.gather(*(payer.chat() for _ in range(4)))
    assert all(one.final for one in told)

    async def applied() -> list[dict[str, Any]]:
        events = [event for event in await kit.events() if event["identifier"] in {f"mc_{one.call_id}" for one in told}]
        return events if len(events) == 2 else []

    async def tried() -> bool:
        untried = "select count(*) from metering.outbox where account = $1 and first_try_at is null"
        return not await scene.hub.value(untried, payer.account)

    events = await until(applied, within_s=20, what="two events are applied")
    await until(tried, within_s=20, what="every row was tried")
    await kit.kill()
    assert not await all_sent(scene, payer)

    async def over() -> bool:
        return time.time() > events[-1]["arrived_at"] + REMEMBERS_S

    await until(over, what="identifiers are forgotten")
    return [event["identifier"] for event in events]


@pytest.mark.crash(20)
async def test_row_20_payment_kit_is_away_for_longer_than_it_remembers_and_is_asked_before_a_repeat(
    scene: Scene, kit: Kit
) -> None:
    payer = await scene.payer("100")
    await forgotten(scene, kit, payer)
    await kit.start(remembers_s=REMEMBERS_S)
    assert await even(scene, kit, payer) > 0


@pytest.mark.crash(20)
async def test_row_20_what_cannot_be_looked_up_is_parked_with_an_alert_and_never_sent_blindly(
    scene: Scene, kit: Kit
) -> None:
    payer = await scene.payer("100")
    applied = await forgotten(scene, kit, payer)
    events = len(journal(kit, payer))
    await kit.start(remembers_s=REMEMBERS_S, fail={"action": "html", "method": "GET"})
    parked = "select count(*) from metering.outbox where account = $1 and state = 'parked'"

    async def all_parked() -> bool:
        return bool(await scene.hub.value(parked, payer.account) == 4)

    await until(all_parked, within_s=20, what="every row in doubt is parked")
    assert len(journal(kit, payer)) == events == len(applied), "nothing was sent again"
    assert "hub_payment_kit_parked_total 4.0" in await scene.metrics("metering")
    await scene.logged("metering", "meter event not sent")
    differences = [each.check for each in (await reconciled(scene)).page]
    assert differences == ["outbox_parked"] * 4
    await kit.fail()
    await rpc.ask(scene.operator, metering.SERVICE, payments.PAYMENT_RETRY, PaymentRetry(), PaymentRetried)
    assert await even(scene, kit, payer) > 0


async def test_kill_after_kill_leaves_every_book_alike(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("100")
    await kit.fail(
        {"action": "lose_reply", "p": 0.2}, {"action": "error", "status": 503, "p": 0.1}, {"action": "drop", "p": 0.1}
    )
    ended = asyncio.Event()

    async def load() -> None:
        while not ended.is_set():
            await asyncio.gather(*(payer.chat(stream=number % 2 == 0) for number in range(4)))

    loading = asyncio.create_task(load())
    for victim in ("metering", "payment-kit"):
        count = await scene.hub.value("select count(*) from metering.outbox")

        async def grown(count: int = count) -> bool:
            return bool(await scene.hub.value("select count(*) > $1 + 3 from metering.outbox", count))

        await until(grown, within_s=20, what="calls go on")
        if victim == "metering":
            await scene.hub.kill(victim)
            await scene.hub.start(victim)
        else:
            await kit.kill()
            await kit.start()
    ended.set()
    await loading
    await kit.fail()
    assert await even(scene, kit, payer) > 0


@pytest.mark.parity(46, 49, 51, 67)
async def test_an_outage_of_an_hour_stops_no_call_that_the_balance_covers_and_the_sums_are_equal_afterwards(
    scene: Scene, kit: Kit
) -> None:
    payer = await scene.payer("100")
    link = await told_link(scene, payer)
    assert link == f"{kit.env['HUB_PAYMENT_KIT_URL']}/checkout/pay/plink_1"
    poor = await scene.payer("0.5")
    await kit.kill()
    ends = time.monotonic() + HOUR_S
    calls = 0
    while time.monotonic() < ends or calls < 10:
        told = await asyncio.gather(payer.chat(), payer.chat(stream=True))
        assert all(one.final for one in told)
        calls += len(told)
        if calls == 4:  # whoever reports forgets all but the rows
            await scene.hub.kill("metering")
            await scene.hub.start("metering")
    assert await told_link(scene, payer) == link
    assert await refused_payer(scene) == ErrorCode.SERVICE_UNAVAILABLE
    spent = await until_refused(poor)
    waiting = "select count(*) as rows, sum(value) as value from metering.outbox where state = 'pending'"
    (row,) = await scene.hub.fetch(waiting)
    assert row["rows"] == calls + spent

    async def left_alone() -> PaymentStatus | None:
        status = await rpc.ask(
            scene.operator, metering.SERVICE, payments.PAYMENT_STATUS, PaymentStatusGet(), PaymentStatus
        )
        return None if status.circuit_closed else status

    status = await until(left_alone, what="Payment Kit is left alone")
    assert status is not None
    assert (status.pending, status.parked, status.unreported) == (row["rows"], 0, row["value"])
    await kit.start()
    assert await even(scene, kit, payer) + await even(scene, kit, poor) == row["value"]


async def until_refused(payer: Payer) -> int:
    """Calls that the mirrored balance let through, before it was used up."""
    for number in range(100):
        told = await payer.chat()
        if not told.final:
            assert (told.status, told.error) == (402, "not_enough_credit")
            return number
    raise AssertionError("a hundred calls of an account that has half a credit")


async def told_link(scene: Scene, payer: Payer) -> str | None:
    """Where the gateway says to pay; it may hear of the link a moment after its start."""

    async def look() -> str | None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                f"{scene.hub.url}/api/user/credit/payment-link", headers={"authorization": f"Bearer {payer.key}"}
            )
            link: str | None = answer.raise_for_status().json()
            return link

    return await until(look, within_s=30, what="a payment link")


async def refused_payer(scene: Scene) -> str:
    """A new user while Payment Kit is away: no account can be opened, and the operator is told so."""
    with pytest.raises(HubError) as refused:
        await scene.payer("1")
    return refused.value.code


async def test_a_webhook_is_taken_from_the_application_only(scene: Scene, kit: Kit) -> None:
    payer = await scene.payer("1")
    event = {"id": "evt_1", "type": "customer.credit_grant.granted", "data": {"object": {"customer_id": "cus_1"}}}
    key = AppKey.read(KEY)
    body = json.dumps(event).encode()
    url = scene.hub.url + CALLBACK

    async def send(headers: dict[str, str], content: bytes = body, query: str = "") -> tuple[int, Any]:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(url + query, content=content, headers=headers)
            return answer.status_code, answer.json()

    good = signed_headers(key, "z2q", "POST", CALLBACK, event, int(time.time()))
    late = signed_headers(key, "z2q", "POST", CALLBACK, event, int(time.time()) - 301)
    other = signed_headers(AppKey.read("11" * 32), "z2q", "POST", CALLBACK, event, int(time.time()))
    for _ in range(2):
        assert await send(good) == (200, {"received": True})
    assert await send({}) == (400, {"error": "Bad Request"})
    for wrong in (late, other):
        assert await send(wrong) == (401, {"error": "verify sig failed"})
    assert await send(good, b'{"id":"evt_2"}') == (401, {"error": "verify sig failed"})
    assert await send(good, query="?livemode=true") == (401, {"error": "verify sig failed"})
    status, refusal = await send(good, b"x" * 300_000)
    assert status == 413, refusal
    assert await scene.hub.value("select granted from metering.account where id = $1", payer.account) == 1
