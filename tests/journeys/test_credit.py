"""The ledger as its users and administrators meet it: over HTTP, on the whole hub."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from rig.provider import Reply

from contracts.rpc import identity
from journeys.system import Caller, System, running
from journeys.test_books import chat
from runtime import rpc

LINK = "https://pay.example/credits?plan=1"
UNIT = 10**10


async def _admin(system: System, method: str, path: str, **content: Any) -> httpx2.Response:
    return await system.http.request(method, f"/api/credit/{path}", headers=system.hub.headers, **content)


async def _post(system: System, path: str, **body: Any) -> httpx2.Response:
    return await _admin(system, "POST", path, json={"id": str(uuid4()), **body})


async def _told(caller: Caller, what: str, **query: str) -> dict[str, Any]:
    answer = await caller.get(f"/api/user/credit/{what}", **query)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.parity(68)
async def test_a_user_sees_grants_transactions_and_balance_in_the_originals_shapes(system: System) -> None:
    caller = await system.caller("0")
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    first = await _post(
        system, "grants", account=caller.account, amount="2.5", name="Pack", expires_at=ends.isoformat()
    )
    second = await _post(system, "grants", account=caller.account, amount=4, category="promotional", priority=60)
    assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
    system.openai.always(Reply())
    done = await caller.post(chat(max_tokens=100))
    view = await caller.call(done.headers["x-call-id"])
    cost = Decimal(view["credits"])
    assert cost > 0

    balance = await _told(caller, "balance")
    assert balance["currency"] == {"symbol": "credits", "decimal": 10}
    left = (Decimal("6.5") - cost) * UNIT
    assert (balance["balance"], balance["total"]) == (str(int(left)), str(65 * UNIT // 10))
    assert (balance["pendingCredit"], balance["grantCount"]) == ("0", 2)
    assert (Decimal(balance["granted"]), Decimal(balance["spent"]), Decimal(balance["held"])) == (
        Decimal("6.5"),
        cost,
        0,
    )
    assert Decimal(balance["pending"]) == 0

    grants = await _told(caller, "grants", page="1", pageSize="10")
    assert (grants["count"], grants["paging"]) == (2, {"page": 1, "pageSize": 10})
    promotional, paid = grants["list"]
    assert (paid["category"], paid["name"], paid["status"], paid["amount"]) == (
        "paid",
        "Pack",
        "granted",
        "25000000000",
    )
    assert (paid["remaining_amount"], paid["expires_at"]) == (
        str(int((Decimal("2.5") - cost) * UNIT)),
        int(ends.timestamp()),
    )
    assert (promotional["category"], promotional["remaining_amount"]) == ("promotional", str(4 * UNIT))

    transactions = await _told(caller, "transactions", pageSize="2")
    charge, grant = transactions["list"]
    assert transactions["count"] == 3
    assert (charge["type"], charge["direction"], charge["call_id"]) == ("charged", "debit", view["call_id"])
    assert (charge["credit_amount"], charge["remaining_balance"]) == (str(int(cost * UNIT)), str(int(left)))
    assert (grant["type"], grant["direction"], grant["credit_amount"]) == ("granted", "credit", str(4 * UNIT))

    statement = await _told(caller, "statement", month=f"{datetime.now(UTC):%Y-%m}")
    assert (Decimal(statement["closing"]), Decimal(statement["difference"])) == (Decimal("6.5") - cost, 0)
    info = (await caller.get("/api/user/info")).json()
    assert info["creditBalance"]["grantCount"] == 2
    link = await caller.get("/api/user/credit/payment-link")
    assert (link.status_code, link.json()) == (200, info["paymentLink"])


@pytest.mark.parity(68)
async def test_an_administrator_gives_takes_gives_back_and_ends(system: System) -> None:
    caller = await system.caller("0")
    change = {"id": str(uuid4()), "account": caller.account, "amount": "10"}
    answers = [await _admin(system, "POST", "grants", json=change) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert (await _admin(system, "POST", "grants", json={**change, "amount": "11"})).status_code == 409

    system.openai.always(Reply())
    call_id = (await caller.post(chat())).headers["x-call-id"]
    cost = Decimal((await caller.call(call_id))["credits"])
    taken = await _post(system, "adjustments", account=caller.account, amount="-3", reason="a mistake")
    assert (taken.status_code, taken.json()["entry"]["amount"]) == (200, "-3.0000000000")
    back = await _post(system, "refunds", call_id=call_id)
    assert Decimal(back.json()["entry"]["amount"]) == cost
    withdrawn = await _post(system, "refunds", grant_id=change["id"], amount="2")
    assert withdrawn.json()["entry"]["kind"] == "withdrawn"
    ended = await _post(system, "expiries", grant_id=change["id"])
    assert Decimal(ended.json()["balance"]["available"]) == cost

    seen = (await _admin(system, "GET", "transactions", params={"account": caller.account})).json()
    kinds = [one["kind"] for one in seen["transactions"]]
    assert kinds == ["expired", "withdrawn", "refunded", "adjusted", "charged", "granted"]
    assert seen["transactions"][3]["made_by"] == (await _owner(system))
    grants = (await _admin(system, "GET", "grants", params={"account": caller.account, "status": "expired"})).json()
    assert [grant["grant_id"] for grant in grants["grants"]] == [change["id"]]
    found = (await _admin(system, "GET", "accounts", params={"contains": caller.account})).json()
    assert [one["account"] for one in found["accounts"]] == [caller.account]
    one = (await _admin(system, "GET", "balance", params={"account": caller.account})).json()
    assert one == found["accounts"][0]
    month = {"account": caller.account, "month": f"{datetime.now(UTC):%Y-%m}"}
    assert Decimal((await _admin(system, "GET", "statement", params=month)).json()["difference"]) == 0


async def _owner(system: System) -> str:
    info = await system.http.get("/api/user/info", headers=system.hub.headers)
    did: str = info.json()["user"]["did"]
    return did


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("grants", {"amount": "-1"}, 400),
        ("grants", {"amount": "NaN"}, 400),
        ("grants", {"amount": "1e18"}, 400),
        ("grants", {"amount": "1", "expires_at": "2020-01-01T00:00:00Z"}, 400),
        ("grants", {"amount": "1", "effective_at": "2020-01-01T00:00:00Z"}, 400),
        ("grants", {"amount": "1", "expires_at": "soon"}, 400),
        ("grants", {"amount": "1", "priority": 101}, 400),
        ("adjustments", {"amount": "-0.01"}, 400),
        ("adjustments", {"amount": "0"}, 400),
    ],
)
async def test_bad_changes_are_a_4xx_and_money_is_unchanged(
    system: System, path: str, body: dict[str, Any], status: int
) -> None:
    account = f"did:{uuid4()}"
    answer = await _post(system, path, account=account, **body)
    assert (answer.status_code, answer.json()["code"]) == (status, "invalid_request"), answer.text
    rows = await system.hub.fetch("select 1 from metering.account where id = $1", account)
    assert rows == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/user/credit/grants?page=0",
        "/api/user/credit/grants?pageSize=101",
        "/api/user/credit/transactions?start=yesterday",
        "/api/user/credit/transactions?page=1001",
        "/api/user/credit/statement?month=2026-13",
        "/api/user/credit/statement",
        "/api/credit/grants",
        "/api/credit/accounts?balance_below=-1",
        "/api/credit/transactions?account=a&kind=stolen",
    ],
)
async def test_questions_that_make_no_sense_are_400(system: System, path: str) -> None:
    answer = await system.http.get(path, headers=system.hub.headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None) -> AsyncIterator[System]:
    """A hub that says where to pay, and welcomes new users."""
    env = {"HUB_PAYMENT_LINK": LINK, "HUB_NEW_USER_CREDITS": "0.0000001", "HUB_WELCOME_DAYS": "30"}
    async with running(tmp_path_factory.mktemp("shop") / "hub", template_folder, env=env, counts={}) as system:
        yield system


@pytest.mark.parity(22, 49)
async def test_a_refusal_for_want_of_credit_says_where_to_pay(shop: System) -> None:
    poor = await shop.caller("0")
    for body in (chat(), chat(stream=True)):
        answer = await poor.post(body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["link"]) == (402, "NOT_ENOUGH", LINK)
        assert LINK in error["message"]
    assert (await poor.get("/api/user/info")).json()["paymentLink"] == LINK
    assert (await poor.get("/api/user/credit/payment-link")).text == json.dumps(LINK)
    account = (await _told(poor, "grants"))["list"][0]["customer_id"]
    await _post(shop, "adjustments", account=account, amount="-0.0000001")
    status = (await poor.get("/api/v2/status")).json()
    assert (status["code"], status["type"], status["link"]) == (402, "NOT_ENOUGH", LINK)


@pytest.mark.parity(65)
async def test_every_new_user_is_welcomed_once_with_credit_that_ends(shop: System) -> None:
    user = await shop.caller("0")
    again = identity.KeyCreate(user=user.account, name="second")
    await rpc.ask(shop.bus, identity.SERVICE, identity.KEY_CREATE, again, identity.KeyCreated)
    (welcome,) = (await _told(user, "grants"))["list"]
    assert (welcome["source"], welcome["amount"]) == ("welcome", "1000")
    assert timedelta(days=29) < datetime.fromtimestamp(welcome["expires_at"], UTC) - datetime.now(UTC)
