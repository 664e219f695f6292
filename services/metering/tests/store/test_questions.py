"""What people and duties ask."""

import asyncio
from decimal import Decimal
from uuid import uuid4

import msgspec
import pytest
from neighbours import CANDIDATE, Neighbours, call

from contracts.errors import ErrorCode, HubError
from contracts.events import Attempt
from contracts.ids import new_call_id
from contracts.rpc import metering as q
from contracts.rpc import model_calls
from contracts.rpc.catalog import Values
from contracts.rpc.what_if import WHAT_IF, WhatIf, WhatIfReply


async def test_a_call_can_be_looked_up_by_its_own_account_only(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call()
    await hub.reserve_batch(reserved)
    open_call = await hub.ask(model_calls.CALL_GET, model_calls.CallGet(call_id=reserved.call_id), model_calls.CallView)
    assert (open_call.state, open_call.credits, open_call.usage) == ("processing", None, None)

    tries = (Attempt(1, "a", "m", "main", 503, "upstream_unavailable"), Attempt(2, "demo", "echo", "spare", 200))
    await hub.publish(hub.completed(reserved, attempts=tries))
    await hub.until_settled(reserved)
    view = await hub.ask(
        model_calls.CALL_GET, model_calls.CallGet(call_id=reserved.call_id, account="did:a"), model_calls.CallView
    )

    assert (view.state, view.credits, view.outcome) == ("success", Decimal("0.2"), "stop")
    assert (view.provider, view.provider_model, view.credential) == ("demo", "echo", "spare")
    assert view.usage is not None
    assert (view.usage["input_tokens"], view.usage["output_tokens"], view.usage["source"]) == (100, 50, "reported")
    assert (view.duration_s, view.first_byte_ms, view.provider_first_byte_ms) == ("1.2", 40, 30)
    assert (view.user, view.project, view.key_id, view.trace_id) == (
        "did:user",
        "did:project",
        "did:key",
        reserved.trace_id,
    )
    assert [(one.number, one.status, one.error) for one in view.attempts] == [
        (1, 503, "upstream_unavailable"),
        (2, 200, ""),
    ]
    for request in (model_calls.CallGet(call_id=reserved.call_id, account="did:b"), model_calls.CallGet(call_id="x")):
        with pytest.raises(HubError) as refused:
            await hub.ask(model_calls.CALL_GET, request, model_calls.CallView)
        assert refused.value.code == ErrorCode.NOT_FOUND


async def test_calls_are_listed_newest_first_page_by_page(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    mine = [call(call_id=new_call_id(1_790_000_000_000 + number)) for number in range(5)]
    await hub.reserve_batch(*mine, call("did:free", "0"))
    seen: list[str] = []
    before = None
    while True:
        page = await hub.ask(
            model_calls.CALL_LIST, model_calls.CallList(account="did:a", limit=2, before=before), model_calls.CallPage
        )
        seen += [one.call_id for one in page.calls]
        before = page.next_before
        if before is None:
            break
    assert seen == [one.call_id for one in reversed(mine)]
    assert len((await hub.ask(model_calls.CALL_LIST, model_calls.CallList(), model_calls.CallPage)).calls) == 6


async def test_outcomes_name_the_known_calls(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    done, running = call(), call()
    await hub.reserve_batch(done, running)
    await hub.publish(hub.completed(done))
    await hub.until_settled(done)
    request = model_calls.CallOutcomes(call_ids=(done.call_id, running.call_id, new_call_id(), "x"))
    reply = await hub.ask(model_calls.CALL_OUTCOMES, request, model_calls.CallOutcomesReply)
    assert {(one.call_id, one.state, one.credits) for one in reply.calls} == {
        (done.call_id, "success", "0.2000000000"),
        (running.call_id, "processing", "0.0000000000"),
    }


async def test_a_grant_counts_once_however_often_it_is_sent(hub: Neighbours) -> None:
    grant = q.Grant(grant_id=str(uuid4()), account="did:a", amount=Decimal("12.5"), granted_by="did:owner")
    balances = await asyncio.gather(*(hub.ask(q.GRANT, grant, q.Balance) for _ in range(20)))
    assert {balance.available for balance in balances} == {Decimal("12.5")}
    with pytest.raises(HubError) as refused:
        await hub.ask(q.GRANT, grant.model_copy(update={"amount": Decimal(1)}), q.Balance)
    assert refused.value.code == ErrorCode.CONFLICT


async def test_an_account_cannot_hold_more_than_the_books_can_write(hub: Neighbours) -> None:
    most = Decimal(10) ** 18 - 1
    await hub.ask(q.GRANT, q.Grant(grant_id=str(uuid4()), account="did:a", amount=most), q.Balance)
    with pytest.raises(HubError) as refused:
        await hub.ask(q.GRANT, q.Grant(grant_id=str(uuid4()), account="did:a", amount=most), q.Balance)
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    assert (await hub.ask(q.BALANCE, q.BalanceGet(account="did:a"), q.Balance)).granted == most


async def test_balance_shows_what_is_held_and_spent(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    done = call()
    await hub.reserve_batch(done, call(hold="3"))
    await hub.publish(hub.completed(done))
    await hub.until_settled(done)
    balance = await hub.ask(q.BALANCE, q.BalanceGet(account="did:a"), q.Balance)
    assert (balance.granted, balance.spent, balance.held, balance.available) == (
        Decimal(10),
        Decimal("0.2"),
        Decimal(3),
        Decimal("6.8"),
    )
    unknown = await hub.ask(q.BALANCE, q.BalanceGet(account="did:nobody"), q.Balance)
    assert unknown.available == 0


async def test_many_accounts_are_opened_at_once_and_known_ones_left_alone(hub: Neighbours) -> None:
    await hub.open_account("did:0", "3")
    names = tuple(f"did:{number}" for number in range(1000))
    request = q.AccountsOpen(accounts=(*names, *names), amount=Decimal(5))
    assert (await hub.ask(q.ACCOUNTS_OPEN, request, q.AccountsOpened)).opened == 999
    assert (await hub.ask(q.ACCOUNTS_OPEN, request, q.AccountsOpened)).opened == 0
    assert await hub.books.fetchval("select sum(granted) from metering.account") == 3 + 999 * 5
    assert await hub.books.fetchval("select count(*) from metering.credit_grant where category = 'welcome'") == 999


@pytest.mark.parametrize("account", ["", "a" * 201, "a\x00"])
async def test_a_name_that_cannot_be_an_account_is_refused(hub: Neighbours, account: str) -> None:
    with pytest.raises(HubError) as refused:
        await hub.ask(q.BALANCE, q.BalanceGet(account=account), q.Balance)
    assert refused.value.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parity(110)
async def test_a_dry_run_tells_what_past_calls_would_have_cost_and_changes_nothing(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    calls = [call() for _ in range(3)]
    await hub.reserve_batch(*calls)
    other = msgspec.structs.replace(CANDIDATE, provider="other")
    await hub.publish(
        hub.completed(calls[0]), hub.completed(calls[1], candidate=other), hub.failed(calls[2], candidate=CANDIDATE)
    )
    await hub.until_settled(*calls)
    doubled = Values(input="0.002", output="0.004")
    for pattern, counted in (("demo/echo", 1), ("demo/*", 1), ("*/echo", 2), ("demo/ech_", 0), ("d%/echo", 0)):
        question = WhatIf(pattern=pattern, rates=doubled, days=1)
        reply = await hub.ask(WHAT_IF, question, WhatIfReply)
        assert (reply.calls, reply.complete) == (counted, True), pattern
        assert (reply.cost, reply.would_cost) == (counted * Decimal("0.2"), counted * Decimal("0.4"))
    await hub.assert_balanced()
