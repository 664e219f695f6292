"""Credit as people ask for it: once per id, never below what is held, and told when it runs out."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from neighbours import Neighbours, call
from pydantic import BaseModel
from rig.fixtures import Database
from rig.waiting import until

from contracts import subjects
from contracts.cloudevent import CreditEvent
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_call_id
from contracts.rpc import credit as c
from contracts.rpc import metering as q
from metering.ledger import notices
from metering.times import iso_ms

pytestmark = pytest.mark.timeout(60)
SOON = datetime.now(UTC) + timedelta(hours=1)


def _grant(account: str = "did:a", amount: str = "10", **more: Any) -> q.Grant:
    return q.Grant(**({"grant_id": str(uuid4()), "account": account, "amount": Decimal(amount)} | more))


def _adjust(amount: str, account: str = "did:a", **more: Any) -> c.Adjust:
    values = {"adjustment_id": str(uuid4()), "account": account, "amount": Decimal(amount), "made_by": "did:owner"}
    return c.Adjust(**(values | more))


async def _changed(hub: Neighbours, method: str, request: Any) -> c.CreditChanged:
    return await hub.ask(method, request, c.CreditChanged)


async def _refused(hub: Neighbours, method: str, request: Any) -> tuple[ErrorCode, str | None]:
    with pytest.raises(HubError) as refused:
        await hub.ask(method, request, q.Balance if method == q.GRANT else c.CreditChanged)
    return refused.value.code, refused.value.param


async def _balance(hub: Neighbours, account: str = "did:a") -> q.Balance:
    return await hub.ask(q.BALANCE, q.BalanceGet(account=account), q.Balance)


async def _assert_explained(hub: Neighbours) -> None:
    assert await hub.books.fetch("select * from metering.credit_differences()") == []
    await hub.assert_balanced()


async def _spent(hub: Neighbours, account: str = "did:a", tokens: int = 100) -> q.ReserveCall:
    """A call that cost 0.1 + a thousandth of its input tokens."""
    done = call(account, hold="5")
    assert await hub.reserve_batch(done) == ["reserved"]
    await hub.publish(hub.completed(done, input_tokens=tokens))
    await hub.until_settled(done)
    return done


async def test_an_id_changes_money_once_and_answers_the_same_again(hub: Neighbours) -> None:
    await hub.ask(q.GRANT, _grant(), q.Balance)
    done = await _spent(hub)
    up, down = _adjust("2.5"), _adjust("-1.25", reason="a mistake")
    refund = c.RefundCall(refund_id=str(uuid4()), call_id=done.call_id, amount=Decimal("0.05"))
    spare = _grant(amount="3")
    await hub.ask(q.GRANT, spare, q.Balance)
    back = c.RefundGrant(refund_id=str(uuid4()), grant_id=spare.grant_id, amount=Decimal(1))
    end = c.GrantExpire(expiry_id=str(uuid4()), grant_id=spare.grant_id)
    changes: tuple[tuple[str, BaseModel, str], ...] = (
        (c.ADJUST, up, "2.5"),
        (c.ADJUST, down, "-1.25"),
        (c.REFUND_CALL, refund, "0.05"),
        (c.REFUND_GRANT, back, "-1"),
        (c.GRANT_EXPIRE, end, "-2"),
    )
    for method, request, amount in changes:
        answers = await asyncio.gather(*(_changed(hub, method, request) for _ in range(5)))
        assert len({answer.entry.entry_id for answer in answers}) == 1
        assert {answer.entry.amount for answer in answers} == {Decimal(amount)}
    assert (await _balance(hub)).granted == Decimal("11.3")
    assert (await _balance(hub)).available == Decimal("11.1")

    others: tuple[tuple[str, BaseModel], ...] = (
        (c.ADJUST, up.model_copy(update={"amount": Decimal(2)})),
        (c.ADJUST, up.model_copy(update={"account": "did:b"})),
        (c.ADJUST, down.model_copy(update={"amount": Decimal(-1)})),
        (c.ADJUST, _adjust("-1", adjustment_id=up.adjustment_id)),
        (c.REFUND_CALL, refund.model_copy(update={"amount": Decimal("0.04")})),
        (c.REFUND_GRANT, back.model_copy(update={"amount": Decimal(2)})),
        (c.GRANT_EXPIRE, end.model_copy(update={"expiry_id": down.adjustment_id})),
        (q.GRANT, _grant(grant_id=down.adjustment_id)),
        (q.GRANT, spare.model_copy(update={"expires_at": SOON})),
    )
    for method, request in others:
        assert (await _refused(hub, method, request))[0] is ErrorCode.CONFLICT, request
    assert (await _balance(hub)).granted == Decimal("11.3")
    assert await hub.books.fetchval("select count(*) from metering.account where id = 'did:b'") == 0
    await _assert_explained(hub)


async def test_what_makes_no_sense_is_refused_and_money_unchanged(hub: Neighbours) -> None:
    await hub.ask(q.GRANT, _grant(), q.Balance)
    for method, request, param in (
        (q.GRANT, _grant(expires_at=datetime.now(UTC) - timedelta(seconds=5)), "expires_at"),
        (q.GRANT, _grant(effective_at=datetime.now(UTC) - timedelta(hours=1)), "effective_at"),
        (q.GRANT, _grant(effective_at=SOON, expires_at=SOON), "expires_at"),
        (q.GRANT, _grant(name="a\x00"), "name"),
        (q.GRANT, _grant(grant_id="mine"), "grant_id"),
        (c.ADJUST, _adjust("0"), "amount"),
        (c.ADJUST, _adjust("0.00000000001"), "amount"),
        (c.ADJUST, _adjust("-10.01"), "amount"),
        (c.ADJUST, _adjust("-1", expires_at=SOON), "expires_at"),
        (c.ADJUST, _adjust("999999999999999999"), "amount"),
        (c.ADJUST, _adjust("-1", "did:nobody"), "amount"),
        (c.REFUND_CALL, c.RefundCall(refund_id=str(uuid4()), call_id=new_call_id()), "call_id"),
        (c.REFUND_CALL, c.RefundCall(refund_id=str(uuid4()), call_id="x"), "call_id"),
        (c.REFUND_GRANT, c.RefundGrant(refund_id=str(uuid4()), grant_id=str(uuid4())), "grant_id"),
        (c.GRANT_EXPIRE, c.GrantExpire(expiry_id="x", grant_id=str(uuid4())), "expiry_id"),
    ):
        code, named = await _refused(hub, method, request)
        assert code in {ErrorCode.INVALID_REQUEST, ErrorCode.NOT_FOUND}
        assert named == param, request
    assert await hub.books.fetchval("select sum(granted) from metering.account") == 10
    assert await hub.books.fetchval("select count(*) from metering.credit_entry") == 1


async def test_an_amount_that_is_none_is_refused_by_name(hub: Neighbours) -> None:
    for amount in ("NaN", "Infinity", "-1e18", "1e18", "one", 1.5, True, None):
        body = msgspec.json.encode({"adjustment_id": str(uuid4()), "account": "did:a", "amount": amount})
        reply = msgspec.json.decode(await hub.operator.call(subjects.rpc(q.SERVICE, c.ADJUST), body, 5))
        assert (reply["error"]["code"], reply["error"]["param"]) == ("invalid_request", "amount"), amount
    assert await hub.books.fetchval("select count(*) from metering.account") == 0


async def test_a_call_gives_back_no_more_than_it_cost_whoever_asks(hub: Neighbours) -> None:
    await hub.ask(q.GRANT, _grant(), q.Balance)
    done, failed = await _spent(hub), call()
    await hub.reserve_batch(failed)
    await hub.publish(hub.failed(failed))
    await hub.until_settled(failed)

    def wanted(amount: str | None = None, call_id: str = done.call_id) -> c.RefundCall:
        part = None if amount is None else Decimal(amount)
        return c.RefundCall(refund_id=str(uuid4()), call_id=call_id, amount=part, made_by="did:owner")

    answers = await asyncio.gather(
        *(_changed(hub, c.REFUND_CALL, wanted("0.05")) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(answer, c.CreditChanged) for answer in answers) == 4
    assert await _refused(hub, c.REFUND_CALL, wanted()) == (ErrorCode.INVALID_REQUEST, "amount")
    assert await _refused(hub, c.REFUND_CALL, wanted(call_id=failed.call_id)) == (ErrorCode.INVALID_REQUEST, "amount")
    assert (await _balance(hub)).available == 10
    await _assert_explained(hub)


async def test_credit_that_a_call_holds_is_not_taken_and_ends_when_it_comes_back(hub: Neighbours) -> None:
    spare = _grant(amount="5")
    await hub.ask(q.GRANT, spare, q.Balance)
    running = call(hold="3")
    await hub.reserve_batch(running)
    ended = await _changed(hub, c.GRANT_EXPIRE, c.GrantExpire(expiry_id=str(uuid4()), grant_id=spare.grant_id))
    assert (ended.entry.amount, ended.balance.available, ended.balance.held) == (-2, 0, 3)
    assert (await _refused(hub, c.ADJUST, _adjust("-0.1")))[0] is ErrorCode.INVALID_REQUEST
    await hub.publish(hub.completed(running))
    await hub.until_settled(running)

    async def gone() -> bool:
        await hub.ask(c.GRANTS_DUE, c.GrantsDue(), c.GrantsDone)
        return (await _balance(hub)).granted == Decimal("0.2")

    await until(gone, within_s=20, what="the rest of the grant has ended")
    (view,) = (await hub.ask(c.GRANTS_LIST, c.GrantsList(account="did:a"), c.GrantsPage)).grants
    assert (view.status, view.remaining) == ("expired", 0)
    await _assert_explained(hub)


async def test_grants_begin_and_end_when_a_duty_asks(hub: Neighbours) -> None:
    now = datetime.now(UTC)
    later = _grant(amount="4", effective_at=now + timedelta(milliseconds=700), priority=7, name="Spring")
    brief = _grant(amount="2", expires_at=now + timedelta(milliseconds=1500))
    await hub.ask(q.GRANT, later, q.Balance)
    first = await hub.ask(q.GRANT, brief, q.Balance)
    assert (first.available, first.upcoming) in {(2, 4), (6, 0)}

    async def settled() -> bool:
        await hub.ask(c.GRANTS_DUE, c.GrantsDue(), c.GrantsDone)
        balance = await _balance(hub)
        return (balance.granted, balance.upcoming, balance.grants) == (4, 0, 1)

    await until(settled, within_s=20, what="one grant has begun, the other has ended")
    page = await hub.ask(c.GRANTS_LIST, c.GrantsList(account="did:a"), c.GrantsPage)
    told = {grant.grant_id: (grant.status, grant.remaining) for grant in page.grants}
    assert told == {later.grant_id: ("granted", 4), brief.grant_id: ("expired", 0)}
    assert {grant.name for grant in page.grants} == {"Spring", ""}
    await _assert_explained(hub)


async def test_two_administrators_and_a_storm_of_calls_leave_books_that_agree(hub: Neighbours) -> None:
    await hub.start_metering()
    await hub.ask(q.GRANT, _grant(amount="20"), q.Balance)

    async def calls() -> None:
        for _ in range(6):
            batch = [call(hold="0.5") for _ in range(10)]
            answers = await hub.reserve_batch(*batch)
            admitted = [one for one, status in zip(batch, answers, strict=True) if status == "reserved"]
            await hub.publish(*(hub.completed(one) for one in admitted))
            await hub.until_settled(*admitted)

    async def administrator() -> int:
        done = 0
        for number in range(12):
            spare = _grant(amount="1", priority=number % 3, expires_at=SOON if number % 2 else None)
            await hub.ask(q.GRANT, spare, q.Balance)
            for method, request in (
                (c.ADJUST, _adjust("-0.7")),
                (c.ADJUST, _adjust("0.3", expires_at=SOON)),
                (c.GRANT_EXPIRE, c.GrantExpire(expiry_id=str(uuid4()), grant_id=spare.grant_id)),
            ):
                (answer,) = await asyncio.gather(_changed(hub, method, request), return_exceptions=True)
                if isinstance(answer, c.CreditChanged):
                    done += 1
                else:
                    assert isinstance(answer, HubError)
                    assert answer.code is ErrorCode.INVALID_REQUEST  # nothing of it was left
        return done

    *_, first, second = await asyncio.gather(calls(), calls(), administrator(), administrator())
    assert first + second > 24
    balance = await _balance(hub)
    assert balance.held == 0
    assert balance.available == balance.granted - balance.spent
    await _assert_explained(hub)


async def test_transactions_are_one_order_with_the_balance_after_each(hub: Neighbours) -> None:
    await hub.ask(q.GRANT, _grant(reason="first"), q.Balance)
    done = await _spent(hub)
    await _changed(hub, c.ADJUST, _adjust("-1", reason="a mistake"))

    async def page(**chosen: Any) -> c.TransactionsPage:
        return await hub.ask(c.TRANSACTIONS, c.TransactionsList(account="did:a", **chosen), c.TransactionsPage)

    every = await page()
    assert [(one.kind, one.amount, one.balance, one.reason) for one in every.transactions] == [
        ("adjusted", -1, Decimal("8.8"), "a mistake"),
        ("charged", Decimal("-0.2"), Decimal("9.8"), ""),
        ("granted", 10, 10, "first"),
    ]
    assert every.transactions[0].made_by == "did:owner"
    charge = every.transactions[1]
    assert (charge.call_id, charge.model, charge.project) == (done.call_id, "demo/echo", "did:project")
    assert ((await page(page=2, page_size=2)).transactions, every.count) == (every.transactions[2:], 3)
    assert (await page(kind="charged")).transactions == (charge,)
    assert (await page(end=datetime(2026, 1, 1, tzinfo=UTC))).count == 0
    assert (await page(page=9)).transactions == ()
    assert (await hub.ask(c.TRANSACTIONS, c.TransactionsList(account="did:b"), c.TransactionsPage)).count == 0

    month = c.StatementGet(account="did:a", month=f"{datetime.now(UTC):%Y-%m}")
    told = await hub.ask(c.STATEMENT, month, c.Statement)
    assert (told.opening, told.granted, told.adjusted, told.charged) == (0, 10, -1, Decimal("-0.2"))
    assert (told.closing, told.difference, told.charges, told.entries) == (Decimal("8.8"), 0, 1, 2)
    before = await hub.ask(c.STATEMENT, month.model_copy(update={"month": "2025-12"}), c.Statement)
    assert (before.opening, before.closing, before.difference) == (0, 0, 0)


async def test_accounts_are_listed_page_by_page_and_chosen(hub: Neighbours) -> None:
    for number in range(5):
        await hub.ask(q.GRANT, _grant(f"did:{number}", str(number + 1)), q.Balance)
    seen: list[str] = []
    after = ""
    while True:
        page = await hub.ask(c.ACCOUNTS_LIST, c.AccountsList(limit=2, after=after), c.AccountsPage)
        seen += [one.account for one in page.accounts]
        if page.next_after is None:
            break
        after = page.next_after
    assert seen == [f"did:{number}" for number in range(5)]
    poor = c.AccountsList(balance_below=Decimal(3))
    assert [one.granted for one in (await hub.ask(c.ACCOUNTS_LIST, poor, c.AccountsPage)).accounts] == [1, 2]
    named = c.AccountsList(contains=":4")
    assert [one.account for one in (await hub.ask(c.ACCOUNTS_LIST, named, c.AccountsPage)).accounts] == ["did:4"]


async def test_a_welcome_grant_is_given_once_per_account_and_can_end(hub: Neighbours) -> None:
    opened = q.AccountsOpen(accounts=("did:a", "did:b", "did:a"), amount=Decimal(5), expires_at=SOON)
    for expected in (2, 0):
        assert (await hub.ask(q.ACCOUNTS_OPEN, opened, q.AccountsOpened)).opened == expected
    balance = await _balance(hub)
    assert (balance.granted, balance.grants, balance.next_expiry_at) == (5, 1, iso_ms(SOON))
    await _spent(hub)
    await _assert_explained(hub)


async def test_low_and_depleted_balances_are_told_once_per_crossing(
    hub: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_EVERY_S", 0.05)
    await hub.restart_metering()
    told: list[CreditEvent] = []

    def note(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        event = msgspec.json.decode(payload, type=CreditEvent)
        if event.data.account == "did:low" and event.data.level in {"low", "depleted"}:
            told.append(event)

    await hub.operator.listen(f"{subjects.CREDIT}.*", note)
    await hub.operator.flush()

    async def levels(*expected: str) -> None:
        async def heard() -> bool:
            return [event.data.level for event in told] == list(expected)

        await until(heard, within_s=20, what=f"notices {expected}")

    def booked(level: str, times: int) -> Callable[[], Any]:
        async def look() -> bool:
            asked = "select count(*) from metering.credit_notice where account = 'did:low' and level = $1"
            return bool(await hub.books.fetchval(asked, level) == times)

        return look

    await hub.ask(q.GRANT, _grant("did:low", "1.3"), q.Balance)
    await _spent_small(hub)
    await _spent_small(hub)
    await levels("low")
    await _spent_small(hub)
    await hub.ask(q.GRANT, _grant("did:low", "5"), q.Balance)
    await until(booked("enough", 1), within_s=20, what="the threshold is armed again")
    await _changed(hub, c.ADJUST, _adjust("-5", "did:low"))
    await levels("low", "low")
    assert await hub.reserve_batch(call("did:low", hold="50")) == ["not_enough"]
    await levels("low", "low", "depleted")
    assert [event.type for event in told] == ["io.aigne.hub.v1.credit.low"] * 2 + ["io.aigne.hub.v1.credit.depleted"]
    assert len({event.id for event in told}) == 3
    assert told[0].data.balance == "0.9000000000"
    assert told[0].data.texts["en"].body.startswith("Only 0.9 credits are left.")
    assert (told[0].subject, told[0].data.threshold) == ("accounts/did:low", "1.0000000000")
    sequences = [event.sequence for event in told]
    assert sequences == sorted(sequences)


async def _spent_small(hub: Neighbours) -> None:
    done = call("did:low", hold="0.25")
    assert await hub.reserve_batch(done) == ["reserved"]
    await hub.publish(hub.completed(done))
    await hub.until_settled(done)


async def test_entries_and_draws_cannot_be_changed_by_the_service(database: Database) -> None:
    connection = await asyncpg.connect(database.dsns["metering"])
    for statement in (
        "update metering.credit_entry set amount = 0",
        "delete from metering.credit_entry",
        "update metering.credit_draw set amount = 0",
        "delete from metering.credit_draw",
        "delete from metering.credit_lot",
        "delete from metering.credit_notice",
        "delete from metering.grant_notice",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
    stranger = await asyncpg.connect(database.dsns["gateway"])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.execute("select metering.credit_differences()")
    await stranger.close()


async def test_a_corrupted_entry_is_named(hub: Neighbours) -> None:
    await hub.ask(q.GRANT, _grant(), q.Balance)
    await hub.books.execute("update metering.credit_entry set amount = amount + 1")
    rows = await hub.books.fetch("select what from metering.credit_differences('did:a') order by what")
    assert "granted" in [row["what"] for row in rows]
    await hub.books.execute("update metering.credit_entry set amount = amount - 1")
    await hub.books.execute("update metering.credit_lot set rest = rest - 1")
    rows = await hub.books.fetch("select what, expected, found from metering.credit_differences() order by what")
    assert [(row["expected"], row["found"]) for row in rows] == [(10, 9), (10, 9)]
