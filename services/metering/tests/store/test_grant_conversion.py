"""Grants that Payment Kit holds change their unit: each once, whatever is lost, killed or asked for twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest
from neighbours import Neighbours, call
from payment_kit.faults import GrantList
from rig.payment_kit import QUICK, LocalKit, served
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.ids import new_call_id
from contracts.rpc import grant_conversion as g
from contracts.rpc import metering as q
from contracts.rpc import payments
from contracts.rpc import reconcile as r
from metering.ledger import conversion as ledger_conversion
from metering.payment_kit import conversion_run
from metering.settings import Settings
from runtime import failpoints

pytestmark = pytest.mark.timeout(90)
A, B = "did:abt:z1payer", "did:abt:z1other"
PRICE = "0.0000025"
OLD, NEW = "agent-hub-ai-meter", "agent-hub-ai-meter-v2"
SOON = int(time.time()) + 86_400
GRANTS = "/api/credit-grants"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes look often, and are trusted to know soon."""
    monkeypatch.setattr(ledger_conversion, "LOOK_S", 0.05)
    monkeypatch.setattr(conversion_run, "LOOK_S", 0.05)
    monkeypatch.setattr(conversion_run, "KNOWN_S", 0.2)


@pytest.fixture
async def kit() -> AsyncIterator[LocalKit]:
    async with served() as kit:
        kit.books.make_meter({"event_name": OLD, "unit": "AIGNE Hub Credits"})
        kit.books.make_meter({"event_name": NEW, "unit": "USD"})
        yield kit


@pytest.fixture
def settings(settings: Settings, kit: LocalKit, request: pytest.FixtureRequest) -> Settings:
    quick = {name.removeprefix("HUB_").lower(): value for name, value in QUICK.items()}
    more = {"payment_link": "https://pay.example", **getattr(request, "param", {})}
    return Settings.model_validate(settings.model_dump() | quick | {"payment_kit_url": kit.url} | more)


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    failpoints.arm("")


def give(kit: LocalKit, amount: str, account: str = A, meter: str = OLD, **fields: Any) -> dict[str, Any]:
    customer = kit.books.make_customer(account.removeprefix("did:abt:"))["id"]
    currency = kit.books.meters[meter]["currency_id"]
    return kit.books.make_grant({"customer_id": customer, "currency_id": currency, "amount": amount, **fields})


def new_grants(kit: LocalKit) -> dict[str, dict[str, Any]]:
    """What was made for which old grant; each once."""
    made = [grant for grant in kit.books.grants if "migratedFromGrantId" in grant.get("metadata", {})]
    found = {grant["metadata"]["migratedFromGrantId"]: grant for grant in made}
    assert len(found) == len(made), "an old grant has two new ones"
    return found


def left(kit: LocalKit, account: str = A, meter: str = NEW) -> Decimal:
    customer, currency = kit.books.customers[account.removeprefix("did:abt:")], kit.books.meters[meter]["currency_id"]
    return Decimal(kit.books.balance(customer, currency)[1] - kit.books.pending(customer, currency)).scaleb(-10)


async def start(hub: Neighbours, **more: Any) -> g.GrantsConversion:
    request = g.GrantsConvert.model_validate({"price": PRICE, "wait_s": 20, **more})
    return await hub.ask(g.GRANTS_CONVERT, request, g.GrantsConversion)


async def ended(hub: Neighbours, conversion_id: str, within_s: float = 30.0) -> g.GrantsConversion:
    async def look() -> g.GrantsConversion | None:
        asked = g.GrantsConversionGet(conversion_id=conversion_id)
        found = await hub.ask(g.GRANTS_CONVERSION, asked, g.GrantsConversion)
        return None if found.state == "running" else found

    found = await until(look, within_s=within_s, what="the conversion has ended")
    assert found is not None
    return found


async def converted(hub: Neighbours, **more: Any) -> g.GrantsConversion:
    return await ended(hub, (await start(hub, **more)).conversion_id)


async def finish(hub: Neighbours) -> g.GrantsConversion:
    return await hub.ask(g.GRANTS_CONVERT_FINISH, g.GrantsConvertFinish(), g.GrantsConversion)


async def unit(hub: Neighbours) -> g.GrantsUnit:
    return await hub.ask(g.GRANTS_UNIT, g.GrantsUnitGet(), g.GrantsUnit)


async def charged(hub: Neighbours, account: str = A, hold: str = "1") -> None:
    """A call of 0.2 credits, once it is admitted."""
    one = call(account, hold=hold)

    async def admitted() -> bool:
        return await hub.reserve_batch(one) == ["reserved"]

    await until(admitted, what="the call is admitted")
    await hub.publish(hub.completed(one))
    await hub.until_settled(one)


async def until_even(hub: Neighbours, kit: LocalKit, account: str = A) -> None:
    """Everything is reported, and what is free here is what is left there."""

    async def look() -> bool:
        if await hub.books.fetchval("select count(*) from metering.outbox where state <> 'sent'"):
            return False
        row = await hub.account(account)
        return bool(row["granted"] - row["spent"] - row["held"] == left(kit, account))

    await until(look, within_s=20, what="our balance is Payment Kit's")


async def differences(hub: Neighbours) -> int:
    started = await hub.ask(r.RECONCILE_START, r.ReconcileStart(), r.ReconcileStarted)

    async def look() -> r.ReconcileReport | None:
        report = await hub.ask(r.RECONCILE_GET, r.ReconcileGet(run_id=started.run_id), r.ReconcileReport)
        return report if report.state != "running" else None

    report = await until(look, within_s=30, what="the comparison ends")
    assert report is not None
    assert report.state == "done", report.error
    assert not [each.not_compared for each in report.comparisons if each.check == "payment_kit" and each.not_compared]
    return report.differences


@pytest.mark.parity(69)
async def test_grants_become_grants_of_the_newer_unit_and_the_books_agree(hub: Neighbours, kit: LocalKit) -> None:
    give(kit, "5", meter=NEW)
    await charged(hub)
    pack = give(kit, "400000", name="Pack", category="paid", priority=7, expires_at=SOON, metadata={"grantId": "x"})
    half = give(kit, "0.0001", name="")
    later = give(kit, "800000", name="Later", effective_at=SOON, account=B)
    over, dust, ended_before = give(kit, "5", expires_at=1), give(kit, "0.00001"), give(kit, "3")
    ended_before["status"] = "expired"
    used = give(kit, "9")
    used |= {"remaining_amount": "0"}
    told_before = await unit(hub)
    assert (told_before.total_grants, told_before.unmigrated_grants, told_before.in_new_unit) == (7, 4, True)

    tried = await converted(hub, dry_run=True)
    assert (tried.state, tried.migrated, tried.skipped, tried.errors, new_grants(kit)) == ("finished", 3, 4, 0, {})
    done = await converted(hub)
    assert (done.state, done.error, done.changes_unit) == ("finished", "", False)
    assert (done.total, done.migrated, done.skipped, done.errors) == (7, 3, 4, 0)
    assert (done.before, done.after) == (tried.before, tried.after) == ("1200000.0001", "3.0000000003")
    made = new_grants(kit)
    assert made.keys() == {pack["id"], half["id"], later["id"]}
    first = made[pack["id"]]
    names = ("amount", "name", "category", "priority", "expires_at", "customer_id", "status")
    assert [first[name] for name in names] == [
        "10000000000", "[Migrated] Pack", "paid", 7, SOON, pack["customer_id"], "granted",
    ]  # fmt: skip
    assert first["currency_id"] == kit.books.meters[NEW]["currency_id"]
    metadata = dict(first["metadata"])
    assert metadata.pop("migratedAt").endswith("Z")
    assert metadata == {
        "grantId": "x", "migratedFromGrantId": pack["id"], "originalAmount": "400000", "conversionFactor": "400000",
    }  # fmt: skip
    assert (made[half["id"]]["amount"], made[half["id"]]["name"]) == ("3", "[Migrated]")
    assert (made[later["id"]]["status"], made[later["id"]]["effective_at"]) == ("pending", SOON)
    assert (pack["status"], pack["metadata"]) == ("expired", {"grantId": "x", "migratedTo": first["id"]})
    assert [one["status"] for one in (over, dust)] == ["granted", "granted"], "nothing of them is worth a new grant"

    await charged(hub)
    await until_even(hub, kit)
    assert left(kit) == Decimal("5.6000000003")
    assert await differences(hub) == 0
    assert await hub.books.fetchval("select count(*) from metering.grant_notice") == 0
    told = await unit(hub)
    assert (told.total_grants, told.unmigrated_grants) == (7, 1)
    again = await converted(hub)
    assert (again.migrated, again.skipped, new_grants(kit).keys()) == (0, 7, made.keys())
    more = give(kit, "4000")
    assert (await converted(hub)).migrated == 1, "what comes later is moved by a later conversion"
    assert new_grants(kit)[more["id"]]["amount"] == "100000000"


@pytest.mark.parity(69)
@pytest.mark.parametrize("settings", [{"payment_kit_unit": "credits"}], indirect=True)
async def test_a_hub_that_changes_its_unit_reserves_nothing_until_all_count_in_the_new_one(
    hub: Neighbours, kit: LocalKit
) -> None:
    grant = give(kit, "400000")
    await charged(hub)
    with pytest.raises(HubError, match="hub credits convert") as refused:
        await start(hub, in_new_unit=True)
    assert refused.value.code == ErrorCode.CONFLICT
    done = await converted(hub)
    assert (done.state, done.error, done.changes_unit) == ("moved", "", True)
    assert (done.before, done.after) == ("399999.8", "0.9999995")
    assert await hub.reserve_batch(call(A)) == ["unavailable"]
    bonus = q.Grant(grant_id=new_call_id(), account=A, amount=Decimal(1))
    with pytest.raises(HubError) as closed:
        await hub.ask(q.GRANT, bonus, q.Balance)
    assert closed.value.code == ErrorCode.SERVICE_UNAVAILABLE
    with pytest.raises(HubError, match="HUB_PAYMENT_KIT_UNIT=USD") as early:
        await finish(hub)
    assert early.value.code == ErrorCode.CONFLICT
    assert (await start(hub)).state == "moved", "asked again it is as it was"

    await hub.restart_metering(payment_kit_unit="USD")
    assert await hub.reserve_batch(call(A)) == ["unavailable"], "not yet finished"
    finished = await finish(hub)
    assert (finished.state, finished.late) == ("finished", 0)
    await charged(hub, hold="0.5")
    await until_even(hub, kit)
    assert left(kit) == Decimal("0.7999995")
    events = [(event["event_name"], event["payload"]["value"]) for event in kit.books.events]
    assert events == [(OLD, "0.2"), (NEW, "0.2")]
    assert grant["status"] == "expired"
    assert await differences(hub) == 0

    lost = kit.books.events[0]["identifier"]
    kit.books.lose(lost)
    again = "update metering.outbox set state = 'pending', next_at = now() where identifier = $1"
    await hub.books.execute(again, lost)
    await until_even(hub, kit)
    assert [event["event_name"] for event in kit.books.events] == [NEW, OLD], "an old charge is never in the new unit"
    assert await differences(hub) == 0

    await hub.restart_metering(payment_kit_unit="credits")
    assert await hub.reserve_batch(call(A, hold="0.1")) == ["unavailable"], "a process that was left in the old unit"
    with pytest.raises(HubError, match="No conversion"):
        await finish(hub)
    with pytest.raises(HubError, match="change their unit"):
        await hub.ask(q.GRANT, bonus.model_copy(update={"grant_id": new_call_id()}), q.Balance)
    (newer,) = [event["identifier"] for event in kit.books.events if event["event_name"] == NEW]
    kit.books.lose(newer)
    await hub.books.execute(
        "update metering.outbox set state = 'pending', next_at = now() where identifier = $1", newer
    )
    await hub.start_metering(payment_kit_unit="USD")
    await until_even(hub, kit)
    assert [event["event_name"] for event in kit.books.events] == [OLD, NEW], "only who counts in the new unit reports"


@pytest.mark.parametrize("settings", [{"payment_kit_batch_s": 0.2}], indirect=True)
async def test_charges_of_before_and_after_the_change_travel_in_batches_of_their_own(
    hub: Neighbours, kit: LocalKit
) -> None:
    give(kit, "5", meter=NEW)
    await hub.ask(payments.PAYMENT_PAUSE, payments.PaymentPause(paused=True), payments.PaymentStatus)
    kit.fail("error", status=503)
    for _ in range(2):
        await charged(hub)
    await hub.books.execute("update metering.payment_control set unit_since = clock_timestamp() + interval '2 ms'")
    await asyncio.sleep(0.01)
    for _ in range(3):
        await charged(hub)
    kit.heal()
    await hub.ask(payments.PAYMENT_PAUSE, payments.PaymentPause(paused=False), payments.PaymentStatus)

    async def sent() -> bool:
        return not await hub.books.fetchval("select count(*) from metering.outbox where state <> 'sent'")

    await until(sent, what="everything is reported")
    values: dict[str, Decimal] = {OLD: Decimal(0), NEW: Decimal(0)}
    for event in kit.books.events:
        values[event["event_name"]] += Decimal(event["payload"]["value"])
    assert values == {OLD: Decimal("0.4"), NEW: Decimal("0.6")}


@pytest.mark.parity(69)
@pytest.mark.parametrize("settings", [{"payment_kit_server_s": 2.0}], indirect=True)
async def test_whatever_answer_is_lost_an_old_grant_has_one_new_one(hub: Neighbours, kit: LocalKit) -> None:
    lost: list[dict[str, Any]] = [
        {"action": "lose_reply", "path": GRANTS}, {"action": "error_after", "path": GRANTS, "status": 502},
        {"action": "html", "path": GRANTS}, {"action": "drop", "path": GRANTS},
        {"action": "hang_after", "path": GRANTS, "seconds": 1.2}, {"action": "hang", "path": GRANTS, "seconds": 1.8},
    ]  # fmt: skip
    grants = [give(kit, "400000", f"did:abt:z1user{number}") for number in range(len(lost))]
    ends = f"{GRANTS}/{grants[0]['id']}"
    rules = [{**fault, "times": 1} for fault in lost]
    rules.append({"action": "lose_reply", "path": ends, "method": "PUT", "times": 1})
    rules.append({"action": "error", "path": f"{GRANTS}/{grants[1]['id']}", "method": "GET", "times": 1})
    kit.server.faults.replace(rules)
    began = time.monotonic()
    done = await converted(hub)
    assert (done.state, done.error, done.migrated, done.errors) == ("finished", "", len(lost), 0)

    async def over() -> bool:
        return time.monotonic() - began > 2.5  # by then what hung is applied, had it been asked for again or not

    await until(over, what="nothing hangs any more")
    assert [rule.times for rule in kit.server.faults.rules] == [0] * len(rules), "each fault has hit"
    assert new_grants(kit).keys() == {grant["id"] for grant in grants}
    assert {grant["status"] for grant in grants} == {"expired"}


@pytest.mark.parity(69)
@pytest.mark.parametrize("point", ["before_grant_made", "after_grant_made"])
@pytest.mark.parametrize("settings", [{"payment_kit_timeout_s": 0.6}], indirect=True)
async def test_a_run_that_breaks_off_is_taken_over_and_grants_nothing_twice(
    hub: Neighbours, kit: LocalKit, point: str
) -> None:
    await hub.start_metering()
    grants = [give(kit, "400000", f"did:abt:z1user{number}") for number in range(4)]
    failpoints.arm(f"metering.{point}:raise:times=2")
    starts = await asyncio.gather(*(start(hub) for _ in range(4)))
    assert len({one.conversion_id for one in starts}) == 1, "whoever asks meanwhile joins"
    done = await ended(hub, starts[0].conversion_id)
    assert (done.state, done.migrated, done.errors) == ("finished", 4, 0)
    made = new_grants(kit)
    assert {grant["id"]: grant["metadata"]["migratedTo"] for grant in grants} == {
        old: grant["id"] for old, grant in made.items()
    }


async def test_the_list_of_grants_is_read_in_every_form(hub: Neighbours, kit: LocalKit) -> None:
    kit.server.faults.grant_filters = False
    kit.server.faults.grant_page_max = 2
    give(kit, "1", meter=NEW)
    forms: list[GrantList] = ["uncounted", "data", "bare"]
    for number, form in enumerate(forms):
        kit.server.faults.grant_list = form
        for user in range(3):
            give(kit, "400000", f"did:abt:z1user{user}", metadata=None)
        done = await converted(hub)
        assert (done.total, done.migrated, done.skipped, done.errors) == (3 * number + 3, 3, 3 * number, 0), form
        assert len(new_grants(kit)) == done.total


async def test_what_cannot_be_moved_stays_and_is_told_with_its_reason(hub: Neighbours, kit: LocalKit) -> None:
    owing, odd = give(kit, "1"), give(kit, "2", B)
    refused, kept = give(kit, "1000", "did:abt:z1third"), give(kit, "400000", "did:abt:z1fourth")
    odd["remaining_amount"] = "1.5"
    kit.books.make_event(
        {
            "event_name": OLD, "identifier": "of-another-hub", "timestamp": 1,
            "payload": {"customer_id": "z1payer", "value": "3"},
        }
    )  # fmt: skip
    owing |= {"remaining_amount": "50000000000", "status": "granted"}
    kit.fail("error", path=f"{GRANTS}/{kept['id']}", method="PUT", status=405)
    refused["customer_id"] = "cus_gone"
    done = await converted(hub)
    assert (done.state, done.migrated, done.skipped, done.errors) == ("finished", 0, 0, 4)
    problems = {one.grant_id: one.problem for one in done.problems}
    assert "404" in problems.pop(refused["id"])
    assert problems == {owing["id"]: "usage_pending", odd["id"]: "unreadable", kept["id"]: "not_ended"}
    kit.heal()
    for event in kit.books.events:
        event["credit_pending"] = "0"
    assert (await converted(hub)).migrated == 2
    assert new_grants(kit).keys() == {owing["id"], kept["id"]}, "what was made before it could be ended is found"


async def test_charges_that_are_not_reported_are_waited_for_and_parked_ones_are_refused(
    hub: Neighbours, kit: LocalKit
) -> None:
    give(kit, "5", meter=NEW)
    grant = give(kit, "400000")
    await charged(hub)
    await until_even(hub, kit)
    kit.fail("error", status=503)
    await charged(hub)
    waited = await converted(hub, wait_s=0)
    assert waited.state == "failed"
    assert "1 charges are not reported yet" in waited.error
    await hub.ask(payments.PAYMENT_PAUSE, payments.PaymentPause(paused=True), payments.PaymentStatus)
    with pytest.raises(HubError, match="paused") as paused:
        await start(hub)
    assert paused.value.code == ErrorCode.CONFLICT
    await hub.ask(payments.PAYMENT_PAUSE, payments.PaymentPause(paused=False), payments.PaymentStatus)
    kit.fail("redirect", times=1)

    async def parked() -> bool:
        return bool(await hub.books.fetchval("select count(*) from metering.outbox where state = 'parked'"))

    await until(parked, what="the report is parked")
    with pytest.raises(HubError, match="1 reports are parked"):
        await start(hub)
    assert (new_grants(kit), grant["status"]) == ({}, "granted")
    await hub.ask(payments.PAYMENT_RETRY, payments.PaymentRetry(), payments.PaymentRetried)
    assert (await converted(hub)).migrated == 1
    await charged(hub)
    await until_even(hub, kit)


async def test_a_running_call_is_waited_for(hub: Neighbours, kit: LocalKit) -> None:
    give(kit, "5", meter=NEW)
    give(kit, "400000")
    running = call(A)
    assert await hub.reserve_batch(running) == ["reserved"]
    begun = await start(hub)

    async def closed() -> bool:
        return await hub.reserve_batch(call("did:abt:z1nobody")) == ["unavailable"]

    await until(closed, what="reserves are refused")
    with pytest.raises(HubError, match="is open") as other:
        await start(hub, price="3")
    assert other.value.code == ErrorCode.CONFLICT
    assert new_grants(kit) == {}
    await hub.publish(hub.completed(running))
    await hub.until_settled(running)
    assert (await ended(hub, begun.conversion_id)).migrated == 1
    await until_even(hub, kit)


async def test_without_the_meters_of_both_units_nothing_begins(hub: Neighbours, kit: LocalKit) -> None:
    old = kit.books.meters.pop(OLD)
    with pytest.raises(HubError, match="no meter agent-hub-ai-meter:") as missing:
        await start(hub)
    kit.books.meters[OLD] = old
    kit.books.meters[NEW]["status"] = "inactive"
    with pytest.raises(HubError, match="not active") as asleep:
        await start(hub, dry_run=True)
    assert missing.value.code == asleep.value.code == ErrorCode.CONFLICT
    await kit.stop()
    with pytest.raises(HubError) as away:
        await start(hub)
    assert away.value.code == ErrorCode.SERVICE_UNAVAILABLE
    told = await unit(hub)
    assert (told.payment_running, told.old_meter, told.unmigrated_grants) == (False, None, 0)
    with pytest.raises(HubError) as unknown:
        await hub.ask(g.GRANTS_CONVERSION, g.GrantsConversionGet(conversion_id="x"), g.GrantsConversion)
    assert unknown.value.code == ErrorCode.NOT_FOUND
    assert await hub.books.fetchval("select count(*) from metering.grant_conversion") == 0


async def test_an_outage_is_waited_out_and_a_long_one_ends_the_conversion(hub: Neighbours, kit: LocalKit) -> None:
    give(kit, "400000")
    kit.fail("error", path="/api/meter-events/pending-amount", method="GET", times=2)
    assert (await converted(hub)).migrated == 1
    give(kit, "400000")
    kit.fail("error", path="/api/meter-events/pending-amount", method="GET")
    gave_up = await converted(hub, wait_s=0.5)
    assert gave_up.state == "failed"
    assert "503" in gave_up.error
    kit.heal()
    give(kit, "5", meter=NEW)
    await charged(hub)
