"""Whoever is given credits, or loses unused ones, is told once: by whom they were given, whatever dies meanwhile."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from neighbours import Neighbours, call
from rig.waiting import until

from contracts import subjects
from contracts.cloudevent import CreditEvent
from contracts.rpc import credit as c
from contracts.rpc import metering as q
from metering.ledger import notices

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def told(hub: Neighbours, monkeypatch: pytest.MonkeyPatch) -> list[CreditEvent]:
    """Every event about credit, as it comes; repeats included."""
    monkeypatch.setattr(notices, "_EVERY_S", 0.05)
    heard: list[CreditEvent] = []

    def note(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        heard.append(msgspec.json.decode(payload, type=CreditEvent))

    await hub.operator.listen(f"{subjects.CREDIT}.*", note)
    await hub.operator.flush()
    await hub.restart_metering()
    return heard


async def until_told(told: list[CreditEvent], account: str, count: int) -> list[CreditEvent]:
    """The notices of an account about what was given and ended, in the order of their numbers."""

    async def look() -> list[CreditEvent]:
        found = [one for one in told if one.data.account == account and one.data.amount]
        return found if len(found) >= count else []

    return sorted(await until(look, within_s=20, what=f"{count} notices"), key=lambda one: one.sequence)


async def give(hub: Neighbours, account: str, amount: str, **more: Any) -> str:
    grant_id = str(uuid4())
    grant = q.Grant(grant_id=grant_id, account=account, amount=Decimal(amount), **more)
    for _ in range(2):  # the second one changes nothing and is not told
        await hub.ask(q.GRANT, grant, q.Balance)
    return grant_id


@pytest.mark.parity(66)
async def test_each_grant_and_each_end_is_told_once_with_its_figures(hub: Neighbours, told: list[CreditEvent]) -> None:
    account = f"did:{uuid4()}"
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    grant_id = await give(hub, account, "4", name="Pack", expires_at=ends)
    one = call(account, hold="1")
    assert await hub.reserve_batch(one) == ["reserved"]
    await hub.publish(hub.completed(one))
    await hub.until_settled(one)
    cost = await hub.books.fetchval("select spent from metering.account where id = $1", account)
    refund = c.RefundCall(refund_id=str(uuid4()), call_id=one.call_id)
    await hub.ask(c.REFUND_CALL, refund, c.CreditChanged)
    expiry = c.GrantExpire(expiry_id=str(uuid4()), grant_id=grant_id)
    await hub.ask(c.GRANT_EXPIRE, expiry, c.CreditChanged)
    taken = c.Adjust(adjustment_id=str(uuid4()), account=account, amount=-cost)
    await hub.ask(c.ADJUST, taken, c.CreditChanged)

    given, refunded, ended = await until_told(told, account, 3)
    assert [event.data.level for event in (given, refunded, ended)] == ["granted", "granted", "expired"]
    assert (given.type, given.subject) == ("io.aigne.hub.v1.credit.granted", f"accounts/{account}")
    assert (given.data.grant_id, given.data.category, given.data.name) == (grant_id, "top_up", "Pack")
    assert (given.data.amount, given.data.balance) == ("4.0000000000", "4.0000000000")
    assert given.data.expires_at == ends.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert (refunded.data.category, Decimal(refunded.data.amount)) == ("refund", cost)
    assert (ended.type, ended.data.grant_id) == ("io.aigne.hub.v1.credit.expired", grant_id)
    assert (Decimal(ended.data.amount), Decimal(ended.data.balance)) == (4 - cost, cost)
    assert given.data.texts["zh"].title
    assert given.data.texts["en"].body.startswith("Your purchase has arrived: 4 credits.")
    await hub.restart_metering()
    assert await hub.books.fetchval("select count(*) from metering.grant_notice where account = $1", account) == 3
    assert len(await until_told(told, account, 3)) == 3


@pytest.mark.parity(65, 66)
async def test_everybody_who_is_welcomed_is_told_so(hub: Neighbours, told: list[CreditEvent]) -> None:
    accounts = tuple(f"did:{uuid4()}" for _ in range(700))
    opened = q.AccountsOpen(accounts=accounts, amount=Decimal("0.5"))
    for _ in range(2):
        await hub.ask(q.ACCOUNTS_OPEN, opened, q.AccountsOpened)

    async def all_sent() -> bool:
        waiting = "select count(*) from metering.grant_notice where sent_at is null"
        return not await hub.books.fetchval(waiting)

    await until(all_sent, within_s=30, what="all notices are sent")
    await hub.operator.flush()
    welcomed = [event for event in told if event.data.category == "welcome"]
    assert sorted(event.data.account for event in welcomed) == sorted(accounts)
    assert len({event.id for event in welcomed}) == len(accounts)


async def test_a_notice_that_was_booked_is_sent_by_whoever_starts_next(
    hub: Neighbours, told: list[CreditEvent]
) -> None:
    account = f"did:{uuid4()}"
    await give(hub, account, "4")
    (first,) = await until_told(told, account, 1)

    async def is_marked() -> bool:
        asked = "select sent_at is not null from metering.grant_notice where account = $1"
        return bool(await hub.books.fetchval(asked, account))

    await until(is_marked, within_s=20, what="the notice is marked as sent")
    await hub.stop_metering()
    await hub.books.execute("update metering.grant_notice set sent_at = null where account = $1", account)
    await hub.start_metering()
    await until(is_marked, within_s=20, what="the notice is marked again")
    kept = await hub.operator.jetstream().stream_info("CREDIT")
    assert kept.state.messages >= 1
    assert {event.id for event in told if event.data.account == account and event.data.amount} == {first.id}
