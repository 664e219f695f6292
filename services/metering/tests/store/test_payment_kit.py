"""One metering with a Payment Kit beside it: what is charged here is there, once, whatever the answers say."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
from neighbours import Neighbours, call
from payment_kit.faults import DuplicateForm
from rig.fixtures import Database
from rig.payment_kit import QUICK, LocalKit, served, total
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.ids import new_call_id
from contracts.rpc import credit, payments
from contracts.rpc import metering as questions
from contracts.rpc.metering import Grant, ReserveCall
from contracts.rpc.payments import PaymentCallback, PaymentPause, PaymentRetry, PaymentStatusGet
from contracts.usage import Usage
from metering.settings import Settings
from runtime.component_call import signed_headers

A = "did:abt:z1payer"
COST = Decimal("0.2")


@pytest.fixture
async def kit() -> AsyncIterator[LocalKit]:
    async with served() as kit:
        yield kit


@pytest.fixture
def settings(settings: Settings, kit: LocalKit) -> Settings:
    quick = {name.removeprefix("HUB_").lower(): value for name, value in QUICK.items()}
    return Settings.model_validate(settings.model_dump() | quick | {"payment_kit_url": kit.url})


async def charged(hub: Neighbours, account: str = A, count: int = 1, **changes: Any) -> list[ReserveCall]:
    """Calls that were reserved and settled, 0.2 credits each."""
    calls = [call(account, **changes) for _ in range(count)]
    for one in calls:
        assert await hub.reserve_batch(one) == ["reserved"]
    await hub.publish(*map(hub.completed, calls))
    await hub.until_settled(*calls)
    return calls


async def until_state(hub: Neighbours, state: str, count: int = 1, within_s: float = 15.0) -> list[asyncpg.Record]:
    async def look() -> list[asyncpg.Record]:
        rows = await hub.books.fetch("select * from metering.outbox where state = $1 order by id", state)
        return rows if len(rows) >= count else []

    return await until(look, within_s=within_s, what=f"{count} rows {state}")


async def until_even(hub: Neighbours, kit: LocalKit, account: str = A, within_s: float = 15.0) -> None:
    """Everything is reported, and what is free here is what is left there, to the last decimal."""

    async def look() -> bool:
        if await hub.books.fetchval("select count(*) from metering.outbox where state <> 'sent'"):
            return False
        row = await hub.account(account)
        target = await hub.books.fetchval("select target from metering.payment_account where account = $1", account)
        left = kit.left(account)  # below zero when more was used than granted
        return bool(target - row["spent"] == left and row["granted"] - row["spent"] == max(left, Decimal(0)))

    await until(look, within_s=within_s, what="our balance is Payment Kit's")
    ledger = await hub.books.fetchval("select sum(amount) from metering.ledger")
    assert total(kit.books.events) == ledger
    identifiers = [event["identifier"] for event in kit.books.events]
    assert len(identifiers) == len(set(identifiers))
    await hub.assert_balanced()


@pytest.mark.parity(45, 58, 60, 68)
async def test_a_charge_is_reported_once_under_the_name_of_its_call(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    (one,) = await charged(hub)
    (row,) = await until_state(hub, "sent")
    (event,) = kit.books.events
    assert (event["identifier"], event["payload"]["value"]) == (f"mc_{one.call_id}", "0.2")
    assert (event["timestamp"], event["metadata"]) == (row["event_at"], {"appId": "did:project"})
    assert event["event_name"] == "agent-hub-ai-meter-v2"
    assert {entry["key"]: entry["value"] for entry in event["source_data"]} == {
        "source": "AIGNE Hub", "record_count": "1", "total_tokens": "150", "total_credits": "0.2",
    }  # fmt: skip
    await until_even(hub, kit)
    assert kit.left(A) == Decimal("9.8")


async def test_the_outbox_row_is_written_with_the_ledger_row_or_not_at_all(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    kit.fail("error", status=503)
    await charged(hub, count=3)
    failed = call(A)
    assert await hub.reserve_batch(failed) == ["reserved"]
    await hub.publish(hub.failed(failed))
    await hub.until_settled(failed)
    rows = await hub.books.fetch(
        "select l.amount, o.value, l.at = o.created_at as together from metering.ledger l"
        " left join metering.outbox o on o.id = l.call_id order by l.acct_seq"
    )
    assert [(row["value"], row["together"]) for row in rows] == [(COST, True)] * 3 + [(None, None)]


@pytest.mark.parity(56)
async def test_a_call_that_costs_nothing_is_not_reported(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    one = call(A)
    assert await hub.reserve_batch(one) == ["reserved"]
    await hub.publish(hub.completed(one, usage=Usage()))
    await hub.until_settled(one)
    assert await hub.books.fetchval("select count(*) from metering.ledger") == 1
    assert await hub.books.fetchval("select count(*) from metering.outbox") == 0


@pytest.mark.parity(60, 61)
async def test_a_reply_that_was_lost_does_not_bill_twice(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    forms: list[DuplicateForm] = ["text", "database", "same_event"]
    for count, form in enumerate(forms, 1):
        kit.server.faults.duplicate_form = form
        kit.fail("lose_reply", times=1)
        (one,) = await charged(hub)
        rows = await until_state(hub, "sent", count)
        assert {str(row["id"]): row["tries"] for row in rows}[one.call_id] == 2, form
        assert len(kit.books.events) == count, form
    await until_even(hub, kit)


async def test_another_value_under_our_identifier_is_parked_and_left_alone(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    kit.server.faults.duplicate_form = "conflict"
    one = call(A)
    assert await hub.reserve_batch(one) == ["reserved"]
    theirs = {
        "event_name": "agent-hub-ai-meter-v2", "identifier": f"mc_{one.call_id}", "timestamp": int(time.time()),
        "payload": {"customer_id": "z1payer", "value": "7"},
    }  # fmt: skip
    kit.books.make_event(theirs)
    await hub.publish(hub.completed(one))
    (row,) = await until_state(hub, "parked")
    assert "value 7" in row["reason"]
    told = await hub.ask(payments.PAYMENT_STATUS, PaymentStatusGet(), payments.PaymentStatus)
    assert (told.parked, told.unreported) == (1, COST)
    assert told.parked_reports[0].identifier == f"mc_{one.call_id}"
    await hub.ask(payments.PAYMENT_RETRY, PaymentRetry(), payments.PaymentRetried)
    (row,) = await until_state(hub, "parked")
    assert (row["value"], [event["payload"]["value"] for event in kit.books.events]) == (COST, ["7"])
    # What is not reported stays subtracted here.
    await _refreshed(hub, A)
    account = await hub.account(A)
    assert account["granted"] - account["spent"] == Decimal(3) - COST


async def test_an_answer_that_makes_no_sense_is_parked_and_can_be_tried_again(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    for fault in ("html", "redirect", "wrong_amount"):
        kit.fail(fault, times=1)
        (one,) = await charged(hub)
        (row,) = await until_state(hub, "parked")
        assert row["reason"], fault
        request = PaymentRetry(identifiers=(f"mc_{one.call_id}",))
        retried = await hub.ask(payments.PAYMENT_RETRY, request, payments.PaymentRetried)
        assert retried.retried == 1
        await until_even(hub, kit)


async def test_whatever_passes_is_waited_out(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    faults: list[dict[str, Any]] = [
        {"action": "error", "status": 500, "times": 2},
        {"action": "error", "status": 429, "retry_after": 1, "times": 1},
        {"action": "error_after", "status": 502, "times": 2},
        {"action": "drop", "times": 2},
        {"action": "hang_after", "seconds": 2.0, "times": 1},
    ]
    for fault in faults:
        kit.fail(**fault)
        await charged(hub, count=2)
        await until_even(hub, kit)
        assert sum(kit.server.faults.hits.values()) == fault["times"], fault


async def test_a_known_event_is_found_after_payment_kit_forgot_its_identifier(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    await hub.restart_metering(payment_kit_dedup_s=0.2)
    kit.books.dedup_s = 0.05
    kit.fail("hang_after", seconds=1.5, times=1)
    await charged(hub)
    await until_even(hub, kit)
    (row,) = await until_state(hub, "sent")
    assert row["tries"] > 1


@pytest.mark.parity(59, 62)
async def test_calls_of_one_user_and_project_travel_together(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    kit.server.faults.duplicate_form = "conflict"
    await hub.restart_metering(payment_kit_batch_s=0.3)
    kit.fail("lose_reply", times=1)
    first = await charged(hub, count=3)
    second = await charged(hub, count=2, project="did:other")
    await until_even(hub, kit)
    batches = await hub.books.fetch("select * from metering.outbox where kind = 'meter_batch' order by id")
    members = {str(member) for batch in batches for member in batch["members"]}
    assert members == {one.call_id for one in first + second}
    assert {event["identifier"] for event in kit.books.events} == {batch["identifier"] for batch in batches}
    assert {event["metadata"]["appId"] for event in kit.books.events} == {"did:project", "did:other"}
    assert sum(batch["calls"] for batch in batches) == 5


@pytest.mark.parity(62)
async def test_reports_wait_while_paused(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    paused = await hub.ask(payments.PAYMENT_PAUSE, PaymentPause(paused=True), payments.PaymentStatus)
    assert paused.is_paused
    await charged(hub, count=2)
    told = await hub.ask(payments.PAYMENT_STATUS, PaymentStatusGet(), payments.PaymentStatus)
    assert (told.pending, told.unreported, kit.books.events) == (2, 2 * COST, [])
    await hub.restart_metering()
    assert await hub.books.fetchval("select count(*) from metering.outbox where tries > 0") == 0
    await hub.ask(payments.PAYMENT_PAUSE, PaymentPause(paused=False), payments.PaymentStatus)
    await until_even(hub, kit)


@pytest.mark.parity(46, 51, 61)
async def test_an_outage_is_lived_through_within_the_mirrored_balance(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "3")
    await charged(hub)
    await until_even(hub, kit)
    await kit.stop()
    for _ in range(9):
        await charged(hub)
    too_much = call(A, hold="1.5")
    assert await hub.reserve_batch(too_much) == ["not_enough"]
    assert await hub.reserve_batch(call("did:abt:z1stranger")) == ["unavailable"]
    await kit.start()
    await until_even(hub, kit)
    assert kit.left(A) == Decimal(1)


@pytest.mark.parity(46, 47, 49)
async def test_money_that_has_come_meanwhile_counts_at_once(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "0.5")
    assert await hub.reserve_batch(call(A)) == ["not_enough"]
    kit.give(A, "0.5")
    statuses: list[str] = []

    async def look() -> bool:
        statuses.extend(await hub.reserve_batch(call(A)))
        return statuses[-1] == "reserved"

    await until(look, what="the new grant is seen")
    assert await hub.reserve_batch(call(A)) == ["not_enough"]


async def test_neighbours_in_a_message_do_not_wait_for_a_strangers_balance(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    await charged(hub)
    kit.fail("hang", method="GET", path="/api/credit-grants/summary", seconds=0.5)
    stranger = call("did:abt:z1stranger")
    assert await hub.reserve_batch(call(A), stranger) == ["reserved", "ask_again"]
    assert kit.server.faults.hits["hang"] == 0
    assert await hub.reserve_batch(stranger) == ["not_enough"]


@pytest.mark.parity(48)
async def test_auto_top_up_lets_calls_through_that_the_balance_does_not_cover(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "0.1")
    kit.books.recharging.add("z1payer")
    await charged(hub, count=2)
    await until_even(hub, kit)
    assert kit.left(A) == Decimal("-0.3")
    kit.books.recharging.clear()

    async def refused() -> bool:
        return await hub.reserve_batch(call(A)) == ["not_enough"]

    await until(refused, what="without top-up the debt counts")


async def test_what_a_settle_frees_is_not_spent_by_an_account_that_has_less_there(
    hub: Neighbours, kit: LocalKit
) -> None:
    kit.give(A, "10")
    running = call(A, hold="9")
    assert await hub.reserve_batch(running) == ["reserved"]
    for grant in kit.books.grants:
        grant["remaining_amount"] = "1000000000"  # 0.1: the rest has expired
    await _refreshed(hub, A)
    account = await hub.account(A)
    assert (account["granted"], account["held"]) == (9, 9)
    await hub.publish(hub.completed(running))
    await hub.until_settled(running)
    account = await hub.account(A)
    assert (account["granted"], account["spent"], account["held"]) == (COST, COST, 0)
    assert await hub.reserve_batch(call(A, hold="0.01")) == ["not_enough"]
    await until_even(hub, kit)


async def test_balances_that_are_no_amounts_change_nothing(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    await charged(hub)
    await until_even(hub, kit)
    kit.fail("wrong_amount", method="GET", path="/api/credit-grants/summary")
    await hub.books.execute("update metering.payment_account set refresh_at = now()")

    async def noticed() -> bool:
        return "wrong_amount" in await hub.books.fetchval("select problem from metering.payment_account")

    await until(noticed, what="the refresh is refused")
    account = await hub.account(A)
    assert account["granted"] == 10


@pytest.mark.parametrize("path", ["/api/credit-grants/summary", "/api/meter-events/pending-amount"])
async def test_pages_redirects_and_refusals_instead_of_a_balance_change_nothing(
    hub: Neighbours, kit: LocalKit, path: str
) -> None:
    kit.give(A, "10")
    await charged(hub)
    await until_even(hub, kit)
    kit.give(A, "5")
    for fault, said in (({"action": "html"}, "no_json"), ({"action": "redirect"}, "redirect"),
                        ({"action": "error", "status": 400}, "refused")):  # fmt: skip
        kit.fail(method="GET", path=path, **fault)
        await hub.books.execute("update metering.payment_account set refresh_at = now(), problem = ''")

        async def noticed(said: str = said) -> bool:
            return said in await hub.books.fetchval("select problem from metering.payment_account")

        await until(noticed, what=f"a balance was not believed: {said}")
        assert (await hub.account(A))["granted"] == 10
    assert await hub.reserve_batch(call(A, hold="9")) == ["reserved"], "the balance that was read last still counts"
    kit.heal()
    await hub.books.execute("update metering.payment_account set refresh_at = now()")

    async def seen() -> bool:
        return bool((await hub.account(A))["granted"] == 15)

    await until(seen, what="the new balance is read")


async def test_grants_from_before_payment_kit_count_no_more(hub: Neighbours, kit: LocalKit) -> None:
    await hub.stop_metering()
    await hub.open_account(A, "1000")
    kit.give(A, "2")
    await hub.start_metering()

    async def adopted() -> bool:
        return bool((await hub.account(A))["granted"] == 2)

    await until(adopted, what="the balance is Payment Kit's")


@pytest.mark.parity(65)
async def test_a_grant_is_made_there_once_however_often_it_is_asked_for(hub: Neighbours, kit: LocalKit) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    grant = Grant(
        grant_id=new_call_id(), account=A, amount=Decimal("1.5"), category="welcome", expires_at=ends, priority=7
    )
    kit.fail("lose_reply", path="/api/credit-grants", times=1)
    with pytest.raises(HubError, match="same grant again") as refused:
        await hub.ask(questions.GRANT, grant, questions.Balance)
    assert refused.value.code == ErrorCode.SERVICE_UNAVAILABLE
    for _ in range(2):
        balance = await hub.ask(questions.GRANT, grant, questions.Balance)
        assert balance.available == Decimal("1.5")
    (made,) = kit.books.grants
    assert (made["expires_at"], made["priority"]) == (int(ends.timestamp()), 7)
    for past in ({"expires_at": datetime.now(UTC)}, {"effective_at": ends}):
        wrong = grant.model_copy(update={"grant_id": new_call_id(), **past})
        with pytest.raises(HubError) as over:
            await hub.ask(questions.GRANT, wrong, questions.Balance)
        assert (over.value.code, over.value.param) == (ErrorCode.INVALID_REQUEST, "expires_at")
    assert len(kit.books.grants) == 1
    assert (made["amount"], made["category"], made["metadata"]["welcomeCredit"]) == ("15000000000", "promotional", True)
    with pytest.raises(HubError) as conflict:
        await hub.ask(questions.GRANT, grant.model_copy(update={"amount": Decimal(2)}), questions.Balance)
    assert conflict.value.code == ErrorCode.CONFLICT


def webhook(kit: LocalKit, event: Any, at: float | None = None, **changes: Any) -> PaymentCallback:
    url, now = "/api/payment/callback", int(at or time.time())
    headers = signed_headers(kit.server.key, "z2q", "POST", url, event, now)
    values = {"method": "POST", "url": url, "headers": headers, "body": msgspec.json.encode(event).decode()}
    return PaymentCallback.model_validate(values | changes)


def granted(customer: str) -> dict[str, Any]:
    return {
        "id": "evt_1", "type": "customer.credit_grant.granted", "livemode": True,
        "data": {"object": {"id": "crdg_1", "customer_id": customer, "amount": "999"}},
    }  # fmt: skip


@pytest.mark.parity(47)
async def test_a_webhook_is_a_hint_and_the_object_is_fetched(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "1")
    await hub.restart_metering(payment_kit_refresh_s=3600.0)
    await charged(hub)
    await until_even(hub, kit)
    kit.give(A, "5")
    event = granted("cus_1")
    for _ in range(3):
        reply = await hub.ask(payments.PAYMENT_CALLBACK, webhook(kit, event), payments.PaymentCallbackReply)
        assert reply.verdict == "good"

    async def seen() -> bool:
        return bool((await hub.account(A))["granted"] == 6)

    await until(seen, within_s=15, what="the grant is seen; its amount is Payment Kit's, not the event's")


@pytest.mark.parity(66)
async def test_a_grant_of_payment_kit_is_told_once_as_it_is_there(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "10")
    await charged(hub)
    ends = int(time.time()) + 86_400
    bought = kit.give(A, "2.5", name="Pack", category="paid", expires_at=ends)
    event = granted(bought["customer_id"])
    event["data"]["object"] |= {"id": bought["id"], "amount": "1", "name": "not what is there"}
    for _ in range(3):
        reply = await hub.ask(payments.PAYMENT_CALLBACK, webhook(kit, event), payments.PaymentCallbackReply)
        assert reply.verdict == "good"
    rows = await hub.books.fetch("select * from metering.grant_notice")
    assert [(row["level"], row["amount"], row["category"], row["name"]) for row in rows] == [
        ("granted", Decimal("2.5"), "paid", "Pack")
    ]
    assert (rows[0]["account"], int(rows[0]["expires_at"].timestamp())) == (A, ends)
    bought |= {"status": "expired", "remaining_amount": "5000000000"}
    await hub.ask(payments.PAYMENT_CALLBACK, webhook(kit, event), payments.PaymentCallbackReply)
    ended = await hub.books.fetch("select amount from metering.grant_notice where level = 'expired'")
    assert [row["amount"] for row in ended] == [Decimal("0.5")]
    kit.fail("error", path=f"/api/credit-grants/{bought['id']}", method="GET")
    with pytest.raises(HubError) as again:
        await hub.ask(payments.PAYMENT_CALLBACK, webhook(kit, event), payments.PaymentCallbackReply)
    assert again.value.code == ErrorCode.SERVICE_UNAVAILABLE


async def test_webhooks_in_another_order_leave_the_balance_that_payment_kit_has(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "1")
    await hub.restart_metering(payment_kit_refresh_s=3600.0)
    await charged(hub)
    await until_even(hub, kit)
    first, second = kit.give(A, "5"), kit.give(A, "7")
    first |= {"status": "expired", "remaining_amount": "20000000000"}
    events = []
    for kind, grant in (("granted", first), ("expired", first), ("granted", second), ("depleted", second)):
        event = granted(first["customer_id"]) | {"type": f"customer.credit_grant.{kind}"}
        event["data"]["object"] |= {"id": grant["id"], "remaining_amount": "990000000000"}
        events.append(webhook(kit, event))
    for one in (events[3], events[1], events[2], events[0], *events):
        reply = await hub.ask(payments.PAYMENT_CALLBACK, one, payments.PaymentCallbackReply)
        assert reply.verdict == "good"

    async def seen() -> bool:
        return bool((await hub.account(A))["granted"] == 8)

    await until(seen, within_s=10, what="what Payment Kit has, whatever the events said")
    await until_even(hub, kit)
    told = await hub.books.fetch("select grant_id, level from metering.grant_notice order by grant_id")
    assert [tuple(row) for row in told] == [(first["id"], "expired"), (second["id"], "granted")], "each told once"


async def test_a_webhook_that_nobody_signed_so_is_refused(hub: Neighbours, kit: LocalKit) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"headers": {}}, "unsigned"),
        ({"body": '{"id":"other"}'}, "wrong"),
        ({"url": "/api/payment/callback?x=1"}, "wrong"),
        ({"body": "\ufffd"}, "wrong"),
        ({"at": 1_750_000_000}, "wrong"),
        ({"at": time.time() + 3600}, "wrong"),
    ]
    for changes, verdict in cases:
        request = webhook(kit, granted("cus_1"), **changes)
        reply = await hub.ask(payments.PAYMENT_CALLBACK, request, payments.PaymentCallbackReply)
        assert reply.verdict == verdict, changes


async def test_a_webhook_about_nobody_we_know_does_no_harm(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "1")
    for event in (granted("cus_9"), granted("z1nobody"), {}, [1], {"data": {"object": {"id": "x"}}}, None):
        reply = await hub.ask(payments.PAYMENT_CALLBACK, webhook(kit, event), payments.PaymentCallbackReply)
        assert reply.verdict == "good"
    assert await hub.books.fetchval("select count(*) from metering.payment_account") == 0


async def test_two_meterings_share_the_work_and_report_each_call_once(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "100")
    kit.server.faults.duplicate_form = "list"
    await hub.start_metering()
    kit.server.faults.replace(
        [{"action": "lose_reply", "p": 0.2}, {"action": "error", "status": 503, "p": 0.1}, {"action": "drop", "p": 0.1}]
    )
    accounts = [f"did:abt:z1user{number}" for number in range(4)]
    for account in accounts:
        kit.give(account, "50")
    await asyncio.gather(*(charged(hub, account, count=15) for account in accounts))
    kit.heal()
    for account in accounts:
        await until_even(hub, kit, account, within_s=20)
    assert len(kit.books.events) == 60


@pytest.fixture
def plain_settings(infra: EmbeddedServers | DockerServers, database: Database, settings: Settings) -> Settings:
    return settings.model_copy(update={"payment_kit_url": ""})


async def test_without_payment_kit_nothing_is_written_and_its_questions_are_refused(
    infra: EmbeddedServers | DockerServers,
    plain_settings: Settings,
    books: "asyncpg.Connection[asyncpg.Record]",
    empty_streams: None,
) -> None:
    async with AsyncExitStack() as stack:
        hub = Neighbours(infra, plain_settings, books, stack)
        await hub.connect()
        await hub.start_metering()
        await hub.open_account(A, "10")
        await charged(hub)
        assert await books.fetchval("select count(*) from metering.outbox") == 0
        told = await hub.ask(payments.PAYMENT_STATUS, PaymentStatusGet(), payments.PaymentStatus)
        assert not told.is_on
        with pytest.raises(HubError) as refused:
            await hub.ask(payments.PAYMENT_PAUSE, PaymentPause(paused=True), payments.PaymentStatus)
        assert refused.value.code == ErrorCode.NOT_FOUND


async def _refreshed(hub: Neighbours, account: str) -> None:
    """Wait for a reading that began after now: the first that ends may have begun before."""
    await _read_again(hub, account)
    await _read_again(hub, account)


async def _read_again(hub: Neighbours, account: str) -> None:
    before = await hub.books.fetchval("select now()")
    await hub.books.execute("update metering.payment_account set refresh_at = now() where account = $1", account)

    async def look() -> bool:
        sql = "select refreshed_at > $2 from metering.payment_account where account = $1"
        return bool(await hub.books.fetchval(sql, account, before))

    await until(look, what="the balance was read again")


async def test_grants_from_before_payment_kit_do_not_end_in_its_mirror(hub: Neighbours, kit: LocalKit) -> None:
    kit.give(A, "5")
    await charged(hub)
    await until_even(hub, kit)
    before = (await hub.account(A))["granted"]
    await hub.books.execute(
        "insert into metering.credit_lot (grant_id, account, priority, effective_at, expires_at, created_at, rest,"
        " state, due_at) values (gen_random_uuid(), $1, 50, now(), now(), now(), 1, 'active', now())", A,
    )  # fmt: skip
    done = await hub.ask(credit.GRANTS_DUE, credit.GrantsDue(), credit.GrantsDone)
    assert (done.accounts, done.ended) == (0, 0)
    assert (await hub.account(A))["granted"] == before
