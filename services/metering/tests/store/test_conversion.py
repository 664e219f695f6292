"""The unit of credits is converted by added rows, each account once, wherever it was cut short."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from neighbours import Neighbours, call
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.rpc import conversion as v
from contracts.rpc import credit as c
from contracts.rpc import metering as q
from metering.ledger import conversion

pytestmark = pytest.mark.timeout(90)
PRICE = "0.0000025"
SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes look often, and are trusted to know at once; that they do is asked for by the test that needs it."""
    monkeypatch.setattr(conversion, "LOOK_S", 0.05)
    monkeypatch.setattr(conversion, "_STANDING", conversion._STANDING.replace("'5.0 s'", "'0.2 s'"))


async def start(hub: Neighbours, price: str = PRICE, **more: Any) -> v.Conversion:
    return await hub.ask(v.CONVERSION_START, v.ConversionStart(price=price, **more), v.Conversion)


async def accounts(hub: Neighbours, price: str = PRICE, **more: Any) -> v.ConversionPage:
    return await hub.ask(v.CONVERSION_ACCOUNTS, v.ConversionAccounts(price=price, **more), v.ConversionPage)


async def finish(hub: Neighbours, price: str = PRICE) -> v.Conversion:
    return await hub.ask(v.CONVERSION_FINISH, v.ConversionFinish(price=price), v.Conversion)


async def give(hub: Neighbours, account: str, amount: str, **more: Any) -> None:
    grant = q.Grant(grant_id=str(uuid4()), account=account, amount=Decimal(amount), **more)
    await hub.ask(q.GRANT, grant, q.Balance)


async def open_grants(hub: Neighbours, account: str) -> list[tuple[Any, ...]]:
    asked = c.GrantsList(account=account, page_size=100)
    page = await hub.ask(c.GRANTS_LIST, asked, c.GrantsPage)
    return sorted(
        (grant.priority, grant.remaining, grant.name, grant.category, grant.status, grant.expires_at)
        for grant in page.grants
        if grant.status in {"granted", "pending"} and grant.remaining
    )


async def opened(hub: Neighbours) -> None:
    """Refusing for everybody."""
    started = await start(hub)
    assert started.started_at is not None

    async def known() -> bool:
        return (await start(hub)).is_known

    await until(known, what="every metering knows")
    refused = call("did:probe")

    async def is_refused() -> bool:
        return await hub.reserve_batch(refused) == ["unavailable"]

    await until(is_refused, what="reserves are refused")


async def until_admitted(hub: Neighbours, account: str) -> str:
    """A reserve, once they are admitted again; returns what it was answered."""

    async def look() -> str | None:
        (status,) = await hub.reserve_batch(call(account, hold="0.0000000001"))
        return None if status == "unavailable" else status

    found = await until(look, what="reserves are admitted")
    assert found is not None
    return found


@pytest.mark.parity(69)
async def test_balances_change_their_unit_by_added_rows_and_to_the_last_place(hub: Neighbours) -> None:
    await give(hub, "did:a", "1000000", name="Pack", priority=40, expires_at=SOON)
    await give(hub, "did:a", "333333.3333333333", category="promotional", name="Bonus")
    await give(hub, "did:a", "500", name="Later", effective_at=SOON, category="promotional")
    await give(hub, "did:b", "0.00002")
    await give(hub, "did:empty", "1")
    done = call("did:a", hold="5")
    assert await hub.reserve_batch(done) == ["reserved"]
    await hub.publish(hub.completed(done))
    await hub.until_settled(done)
    spent = await hub.books.fetchval("select spent from metering.account where id = 'did:a'")
    rows = await hub.books.fetch("select * from metering.credit_entry order by account, number")

    tried = await accounts(hub, dry_run=True)
    assert (await start(hub, dry_run=True)).started_at is None
    assert await hub.books.fetch("select * from metering.credit_entry order by account, number") == rows
    await opened(hub)
    page = await accounts(hub)
    assert page.accounts == tried.accounts
    assert [one.problem for one in page.accounts] == ["", "", ""]
    by_name = {one.account: one for one in page.accounts}
    a = by_name["did:a"]
    assert (a.grants, a.before) == (3, Decimal("1333833.3333333333") - spent)
    with_all_places = a.before * Decimal(PRICE) + Decimal(a.rounding)
    assert a.after == with_all_places
    assert abs(Decimal(a.rounding)) <= Decimal("5E-11")
    b = by_name["did:b"]
    assert (b.after, b.rounding) == (Decimal("0.0000000001"), "0.00000000005")

    told = await finish(hub)
    assert (told.converted, told.waiting, told.late) == (3, 0, 0)
    assert Decimal(told.after) == Decimal(told.before) * Decimal(PRICE) + Decimal(told.rounding)
    assert Decimal(told.rounding) == sum(Decimal(one.rounding) for one in page.accounts)
    ends = SOON.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    first, later, bonus = await open_grants(hub, "did:a")
    assert (first[0], first[2:]) == (40, ("Pack", "top_up", "granted", ends))
    assert later[1:5] == (Decimal("0.00125"), "Later", "promotional", "pending")
    assert bonus[2:5] == ("Bonus", "promotional", "granted")
    balance = await hub.ask(q.BALANCE, q.BalanceGet(account="did:a"), q.Balance)
    assert balance.available + balance.upcoming == a.after
    assert balance.spent == spent
    kept = await hub.books.fetch("select * from metering.credit_entry order by account, number")
    assert [row for row in kept if row in rows] == rows
    assert await hub.books.fetch("select * from metering.credit_differences()") == []
    await hub.assert_balanced()
    told_owners = "select count(*) from metering.grant_notice where at > (select started_at from metering.conversion)"
    assert await hub.books.fetchval(told_owners) == 0
    assert await until_admitted(hub, "did:a") == "reserved"
    refund = c.RefundCall(refund_id=str(uuid4()), call_id=done.call_id)
    with pytest.raises(HubError, match="unit of before") as old:
        await hub.ask(c.REFUND_CALL, refund, c.CreditChanged)
    assert old.value.code == ErrorCode.CONFLICT
    assert await hub.books.fetchval("select count(*) from metering.credit_entry where kind = 'refunded'") == 0


@pytest.mark.parity(69)
async def test_a_conversion_goes_on_where_it_ended_and_is_done_once(hub: Neighbours) -> None:
    for number in range(5):
        await give(hub, f"did:{number}", "400000")
    await opened(hub)
    (first,) = (await accounts(hub, limit=1)).accounts
    await hub.restart_metering()  # what is open stays open
    refused = call("did:4")

    async def is_refused() -> bool:
        return await hub.reserve_batch(refused) == ["unavailable"]

    await until(is_refused, what="reserves are refused by the next process, too")
    with pytest.raises(HubError, match="4 accounts") as early:
        await finish(hub)
    assert early.value.code == ErrorCode.CONFLICT
    pages = await asyncio.gather(accounts(hub), accounts(hub), return_exceptions=True)
    again = await accounts(hub)
    assert again.accounts[0] == first
    assert [one.after for one in again.accounts] == [1] * 5
    assert all(isinstance(page, (v.ConversionPage, HubError)) for page in pages)
    await finish(hub)
    assert (await start(hub)).finished_at is not None
    with pytest.raises(HubError) as late:
        await accounts(hub)
    assert late.value.code == ErrorCode.CONFLICT
    await give(hub, "did:new", "7")
    assert [one.granted for one in await _balances(hub)] == [1, 1, 1, 1, 1, 7]
    assert await hub.books.fetch("select * from metering.credit_differences()") == []


async def _balances(hub: Neighbours) -> list[q.Balance]:
    page = await hub.ask(c.ACCOUNTS_LIST, c.AccountsList(), c.AccountsPage)
    return list(page.accounts)


async def test_an_account_whose_call_runs_waits_for_its_end(hub: Neighbours) -> None:
    await give(hub, "did:busy", "100")
    running = call("did:busy", hold="5")
    assert await hub.reserve_batch(running) == ["reserved"]
    await opened(hub)
    assert (await start(hub)).running == 1
    (one,) = (await accounts(hub)).accounts
    assert one.problem == "busy"
    await hub.publish(hub.completed(running))  # facts are taken all the time
    await hub.until_settled(running)
    (one,) = (await accounts(hub)).accounts
    assert (one.problem, one.before) == ("", Decimal("99.8"))
    await finish(hub)


async def test_credits_above_the_domain_stay_as_they_are(hub: Neighbours) -> None:
    await give(hub, "did:rich", "900000000000000000")
    started = await start(hub, "400000")

    async def known() -> bool:
        return (await start(hub, "400000")).is_known

    await until(known, what="every metering knows")
    (one,) = (await accounts(hub, "400000")).accounts
    assert (started.waiting, one.problem) == (1, "too_much")
    assert await hub.books.fetchval("select granted from metering.account") == 900_000_000_000_000_000


async def test_one_conversion_is_open_at_a_time(hub: Neighbours) -> None:
    await start(hub)
    for question in (start(hub, "3"), accounts(hub, "3")):
        with pytest.raises(HubError) as refused:
            await question
        assert refused.value.code == ErrorCode.CONFLICT
    with pytest.raises(HubError) as unknown:
        await finish(hub, "3")
    assert unknown.value.code == ErrorCode.NOT_FOUND


@pytest.mark.parametrize("price", ["0", "-1", "NaN", "Infinity", "1e7", "0.00000000009", "x", ""])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(ValueError, match="price"):
        v.ConversionStart(price=price)


async def test_what_was_converted_cannot_be_changed_by_the_service(hub: Neighbours) -> None:
    connection = await asyncpg.connect(hub.settings.database_url.get_secret_value())
    for statement in ("update metering.conversion_account set after = 0", "delete from metering.conversion_account"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
