"""What the books, the bus and the status pages say about calls."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from rig import messages
from rig.provider import FakeProvider, Received, Reply, refusal
from rig.waiting import until

from contracts.permissions import ROUTER
from contracts.rpc import identity
from contracts.rpc.envelope import Empty
from contracts.streams import CALLS, PROVIDER_HEALTH, USAGE
from journeys import taps, wire
from journeys.system import CLAUDE, Caller, System, running
from runtime import rpc

ASK = [{"role": "user", "content": "Say hello."}]
ZERO = "0.0000000000"


def chat(**fields: object) -> dict[str, Any]:
    return {"model": "openai/gpt-4o", "messages": ASK, **fields}


# ---- GET /api/v2/calls/{id} -----------------------------------------------------------------------------------------


@pytest.mark.parity(53, 54, 71, 75)
async def test_a_call_that_succeeded_is_told_with_all_that_is_known(system: System) -> None:
    caller = await system.caller("1000")
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    await system.set_rate("openai/detailed", "0.01", "0.03", cache_read="0.001", reasoning="0.05", request="0.5")
    await priced(caller, "openai/detailed", "0.01")
    system.openai.always(Reply(usage=usage, head_delay_s=0.05))
    response = await caller.post(
        chat(model="openai/detailed", stream=True), x_aigne_hub_client_did="zProject", x_request_id="my-request"
    )
    view = await caller.call(response.headers["x-call-id"])
    assert view["credits"] == "3.0400000000"  # 60 and 40 in, 30 and 20 out, and the request
    assert view["usage"] == {
        "input_tokens": 60,
        "cache_read_tokens": 40,
        "output_tokens": 30,
        "reasoning_tokens": 20,
        "source": "reported",
    } | {name: 0 for name in ("cache_write_tokens",) if name in view["usage"]}
    expected = {
        "state": "success",
        "outcome": "stop",
        "account": caller.account,
        "key_id": caller.key_id,
        "project": "zProject",
        "kind": "chat",
        "dialect": "openai",
        "model": "openai/detailed",
        "provider": "openai",
        "provider_model": "detailed",
        "stream": True,
        "overrun": ZERO,
        "written_off": ZERO,
        "error_code": None,
        "request_id": "my-request",
        "trace_id": response.headers["x-trace-id"],
    }
    assert {name: view[name] for name in expected} == expected
    assert view["first_byte_ms"] >= view["provider_first_byte_ms"] >= 50
    assert 0 <= float(view["duration_s"]) < 5
    assert view["created_at"] < view["settled_at"]
    (attempt,) = view["attempts"]
    assert (attempt["number"], attempt["provider"], attempt["status"], attempt["error"]) == (1, "openai", 200, "")


@pytest.mark.parity(75)
async def test_a_whole_answer_has_a_first_byte_too(system: System, caller: Caller) -> None:
    system.openai.always(Reply(head_delay_s=0.05))
    view = await caller.call((await caller.post(chat())).headers["x-call-id"])
    assert view["first_byte_ms"] >= 50
    assert view["provider_first_byte_ms"] >= 50


@pytest.mark.parity(76)
async def test_a_call_that_failed_is_told_with_its_reason_and_no_credits(system: System, caller: Caller) -> None:
    system.openai.always(refusal(422, "w" * 5000, code="theirs"))
    view = await caller.closed((await caller.post(chat())).headers["x-call-id"])
    assert (view["state"], view["credits"], view["error_code"]) == ("failed", ZERO, "upstream_rejected")
    assert 100 < len(view["error_reason"]) <= 1000
    assert view["attempts"][0]["status"] == 422


@pytest.mark.parity(35)
async def test_a_call_is_told_to_its_account_and_to_owners_only(system: System, caller: Caller) -> None:
    call_id = (await caller.post(chat())).headers["x-call-id"]
    stranger = await system.caller("0")
    foreign = await stranger.get(f"/api/v2/calls/{call_id}")
    unknown = await stranger.get(f"/api/v2/calls/{call_id[:-12]}{'0' * 12}")
    nonsense = await stranger.get("/api/v2/calls/nonsense")
    assert [answer.status_code for answer in (foreign, unknown, nonsense)] == [404, 404, 404]
    assert foreign.json()["error"]["code"] == unknown.json()["error"]["code"] == "not_found"
    owner = await system.http.get(f"/api/v2/calls/{call_id}", headers=system.hub.headers)
    assert owner.json()["attempts"][0]["credential"] == "openai"
    own = await caller.call(call_id)
    assert (own["credential"], own["attempts"][0]["credential"]) == (None, "")
    assert (await system.http.get(f"/api/v2/calls/{call_id}")).status_code == 401


# ---- status and balance ---------------------------------------------------------------------------------------------


@pytest.mark.parity(22)
async def test_status_says_whether_a_call_would_go_through(system: System, caller: Caller) -> None:
    async def status(who: Caller, **query: str) -> dict[str, Any]:
        response = await who.get("/api/v2/status", **query)
        assert response.status_code == 200
        told: dict[str, Any] = response.json()
        return told

    assert (await status(caller, model="openai/gpt-4o"))["available"] is True
    assert (await status(caller))["available"] is True
    poor = await system.caller("0")
    wanted = [
        (poor, {"model": "openai/gpt-4o"}, 402, "NOT_ENOUGH"),
        (caller, {"model": "nobody/nothing"}, 404, "invalid_request_error"),
        (caller, {"model": "openai/no-price"}, 400, "invalid_request_error"),
    ]
    for who, query, code, kind in wanted:
        told = await status(who, **query)
        assert (told["available"], told["code"], told["type"]) == (False, code, kind)
        assert told["error"]


@pytest.mark.parity(63)
async def test_the_balance_shows_what_is_held_while_a_call_runs(system: System, caller: Caller) -> None:
    async def balance() -> dict[str, str]:
        told: dict[str, str] = (await caller.get("/api/user/info")).json()["creditBalance"]
        assert told.pop("grantCount") == 1
        return told

    assert await balance() == {"balance": "100.0000000000", "total": "100.0000000000", "pendingCredit": ZERO}
    reply = Reply(hold_at=3)
    system.openai.always(reply)
    running_call = asyncio.create_task(caller.post(chat(stream=True)))
    received = await system.openai.asked()
    during = await balance()
    hold = Decimal((await caller.call(received.call_id))["hold"])
    assert Decimal(during["pendingCredit"]) == hold > 0
    assert Decimal(during["balance"]) == 100 - hold
    reply.released.set()
    assert (await running_call).status_code == 200
    assert await balance() == {"balance": "99.9830000000", "total": "100.0000000000", "pendingCredit": ZERO}


# ---- who pays, and what for -----------------------------------------------------------------------------------------


@pytest.mark.parity(40, 41)
@pytest.mark.parametrize(
    ("given", "project"),
    [("zNKproject", "zNKproject"), ("%E9%A1%B9%E7%9B%AE", "项目"), ("p" * 300, "p" * 200), (None, None)],
    ids=["plain", "percent-encoded", "too long", "none"],
)
async def test_a_call_is_attributed_to_one_project_everywhere(
    system: System, caller: Caller, given: str | None, project: str | None
) -> None:
    before = await taps.last_sequence(system.hub, USAGE.name)
    named = {} if given is None else {"x_aigne_hub_client_did": given}
    call_id = (await caller.post(chat(), **named)).headers["x-call-id"]

    async def recorded() -> dict[str, Any] | None:
        events = (json.loads(event.payload) for event in await taps.stored(system.hub, USAGE.name, before))
        return next((event["data"] for event in events if event["data"]["call_id"] == call_id), None)

    event = await until(recorded, what="the usage event")
    assert event is not None
    expected = caller.key_id if project is None else project
    assert (await caller.call(call_id))["project"] == event["project"] == expected
    assert event["account"] == caller.account


@pytest.mark.parity(36)
async def test_headers_that_name_a_user_count_for_nothing(system: System, caller: Caller) -> None:
    victim = await system.caller()
    claims = {"x_user_did": victim.account, "x_user_role": "owner", "x_user_kyc": "1", "cookie": "login_token=x"}
    call_id = (await caller.post(chat(), **claims)).headers["x-call-id"]
    assert (await caller.call(call_id))["account"] == caller.account
    named = {name.replace("_", "-"): value for name, value in claims.items()}
    for path in ("/api/user/info", "/v1/models"):
        assert (await system.http.get(path, headers=named)).status_code == 401
    told = (await system.http.get("/api/user/info", headers={**named, **caller.headers})).json()
    assert (told["user"]["did"], told["role"]) == (caller.account, "member")
    assert (await victim.standing()).calls == 0


@pytest.mark.parity(34, 131)
async def test_all_gateways_agree_on_keys_prices_and_books(system: System, caller: Caller) -> None:
    one, other = system.hub.urls

    async def at(url: str, **fields: object) -> httpx2.Response:
        return await system.http.post(f"{url}/v1/chat/completions", json=chat(**fields), headers=caller.headers)

    call_id = (await at(one)).headers["x-call-id"]
    seen = await system.http.get(f"{other}/api/v2/calls/{call_id}", headers=caller.headers)
    assert (seen.json()["state"], seen.json()["credits"]) == ("success", "0.0170000000")
    assert (await at(other)).status_code == 200
    assert (await caller.standing()).spent == Decimal("0.034")

    async def everywhere(look: Callable[[str], Awaitable[bool]]) -> bool:
        return all([await look(url) for url in (one, other)])

    async def new_price(url: str) -> bool:
        told = await system.http.get(f"{url}/v1/models/openai/agreed", headers=caller.headers)
        return bool(told.json().get("output_credits_per_token") == "0.5")

    async def revoked(url: str) -> bool:
        return (await at(url)).status_code == 401

    await system.set_rate("openai/agreed", "0.5", "0.5")
    await until(lambda: everywhere(new_price), within_s=5.0, what="both gateways know the price")
    await rpc.ask(system.bus, identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id=caller.key_id), Empty)
    await until(lambda: everywhere(revoked), within_s=5.0, what="both gateways refuse the key")


# ---- facts and usage events -----------------------------------------------------------------------------------------


async def four_ends(system: System, caller: Caller) -> dict[str, str]:
    """Call ids by how the calls ended: whole, streamed, failed and cancelled."""
    ends = {"whole": (await caller.post(chat())).headers["x-call-id"]}
    ends["streamed"] = (await caller.post(chat(model=CLAUDE, stream=True))).headers["x-call-id"]
    system.openai.always(refusal(500))
    ends["failed"] = (await caller.post(chat())).headers["x-call-id"]
    system.openai.always(Reply(hold_at=3))
    async with caller.system.http.stream(
        "POST", "/v1/chat/completions", json=chat(stream=True), headers=caller.headers
    ) as response:
        await anext(response.aiter_raw())
    ends["cancelled"] = response.headers["x-call-id"]
    for call_id in ends.values():
        await caller.closed(call_id)
    return ends


@pytest.mark.parity(73)
async def test_every_call_has_its_facts_on_the_stream_of_calls(system: System, caller: Caller) -> None:
    before = await taps.last_sequence(system.hub, CALLS.name)
    ends = await four_ends(system, caller)
    facts: dict[str, list[tuple[str, dict[str, Any]]]] = {call_id: [] for call_id in ends.values()}
    for message in await taps.stored(system.hub, CALLS.name, before):
        messages.validate(message.subject, message.payload)
        fact = json.loads(message.payload)
        facts[fact["call_id"]].append((message.subject, fact))
        assert b"Say hello" not in message.payload
        assert b"provider." not in message.payload
    for end, call_id in ends.items():
        (asked, requested), (ended, outcome) = facts[call_id]
        assert asked == "hub.v1.calls.requested.chat"
        assert ended == f"hub.v1.calls.{'failed' if end == 'failed' else 'completed'}.chat"
        assert requested["account"] == outcome["account"] == caller.account
        assert requested["trace_id"] == outcome["trace_id"] == (await caller.call(call_id))["trace_id"]


@pytest.mark.parity(52, 58, 60)
async def test_usage_events_are_numbered_without_a_gap_and_can_be_computed_again(
    system: System, caller: Caller
) -> None:
    before = await taps.last_sequence(system.hub, USAGE.name)
    ends = await four_ends(system, caller)

    async def recorded() -> list[taps.Stored]:
        events = await taps.stored(system.hub, USAGE.name, before)
        own = [event for event in events if json.loads(event.payload)["subject"] == f"accounts/{caller.account}"]
        return own if len(own) == len(ends) else []

    events = await until(recorded, what="a usage event for each call")
    charged = Decimal(0)
    for number, message in enumerate(events, 1):
        messages.validate(message.subject, message.payload)
        event = json.loads(message.payload)
        data = event["data"]
        assert (event["specversion"], event["type"]) == ("1.0", "io.aigne.hub.v1.usage.recorded")
        assert event["id"] == message.headers["Nats-Msg-Id"] == f"ue_{data['call_id']}"
        assert event["sequence"] == f"{number:020d}"
        assert data["sequence"] == number
        view = await caller.call(data["call_id"])
        assert (data["credits"], data["state"]) == (view["credits"], view["state"])
        assert data["outcome"] == (view["outcome"] or "")
        assert Decimal(data["credits"]) == recomputed(data)
        charged += Decimal(data["credits"])
    assert {json.loads(event.payload)["data"]["call_id"] for event in events} == set(ends.values())
    assert (await caller.standing()).spent == charged > 0


def recomputed(data: dict[str, Any]) -> Decimal:
    """Credits from an event alone."""
    if data["state"] == "failed":
        return Decimal(0)
    total = sum(
        (Decimal(data["usage"].get(f"{unit}_tokens", 0)) * Decimal(data["rates"].get(unit, "0"))
        for unit in ("input", "output")),
        Decimal(0),
    )  # fmt: skip
    return total.quantize(Decimal("1E-10"), ROUND_HALF_UP)


async def test_every_message_on_the_bus_is_as_the_document_says(system: System) -> None:
    async with taps.tapped(system.hub) as tap:
        caller = await system.caller("100000")
        ends = await four_ends(system, caller)
        system.openai.forget()
        large = await caller.post(chat(user="u" * 5 * 2**20))
        assert large.status_code == 200
        await caller.get("/api/user/info")
        await system.set_rate("openai/tapped", "1", "1")
        await until(lambda: heard_all(tap, ends), what="the books' notices were heard")
    names = tap.validated()
    assert {
        "dispatch",
        "parts",
        "inbox.frames",
        "inbox.settled",
        "cancel",
        "catalog.changed",
        "identity.changed",
        "usage.recorded",
        "rpc.metering.reserve",
        "rpc.metering.reserve.reply",
        "rpc.metering.call_get.reply",
        "rpc.metering.balance.reply",
        "rpc.metering.grant.reply",
        "rpc.gateway.key_create.reply",
        "rpc.provider-router.rates_set.reply",
        "rpc.provider-router.catalog_snapshot.reply",
    } <= names
    secrets = (caller.key.encode(), b"sk-the-hubs-own-key")
    made = "hub.v1.rpc.gateway.key_create"
    answers = {message.reply for message in tap.heard if message.subject == made}
    said = [message.payload for message in tap.heard if message.subject not in answers]
    assert not any(secret in payload for secret in secrets for payload in said)


async def heard_all(tap: taps.Tap, ends: dict[str, str]) -> bool:
    """The tap hears on a connection of its own, a little later than those who are spoken to."""
    settled = all(any(".settled" in subject for subject in tap.about(call_id)) for call_id in ends.values())
    return settled and "rpc.provider-router.rates_set.reply" in tap.validated()


# ---- failover and cool-down -----------------------------------------------------------------------------------------


@pytest.mark.parity(72, 94, 95, 96)
async def test_a_provider_that_limits_us_rests_for_all_routers(system: System, caller: Caller) -> None:
    model, asked = system.pooled_model(), list[FakeProvider]()

    def answer(who: FakeProvider, _received: Received) -> Reply:
        asked.append(who)
        return refusal(429, retry_after="60") if who is asked[0] else Reply()

    for provider in (system.first, system.second):
        provider.always(lambda received, who=provider: answer(who, received))
    first = await caller.call((await caller.post(chat(model=model))).headers["x-call-id"])
    limited, other = first["attempts"]
    assert (limited["status"], limited["error"], other["error"]) == (429, "upstream_rate_limited", "")
    await shared(system, limited["provider"])
    for _ in range(12):
        view = await caller.call((await caller.post(chat(model=model))).headers["x-call-id"])
        assert [attempt["provider"] for attempt in view["attempts"]] == [other["provider"]]
    assert len(asked) == 14
    assert sum(who is asked[0] for who in asked) == 1
    facts = await taps.stored(system.hub, CALLS.name, 0)
    served = {json.loads(fact.payload).get("router") for fact in facts if caller.account.encode() in fact.payload}
    assert len(served - {None}) == 2


async def shared(system: System, provider: str) -> None:
    """Wait until the cool-down is where every router watches for it."""
    bus = await system.hub.connect(ROUTER)
    try:
        bucket = await bus.jetstream().key_value(PROVIDER_HEALTH.name)
        watcher = await bucket.watch(provider)
        async with asyncio.timeout(5):
            async for entry in watcher:
                if entry is not None and entry.value is not None and json.loads(entry.value)["opened"]:
                    break
        await watcher.stop()
    finally:
        await bus.close()


# ---- rates and holds ------------------------------------------------------------------------------------------------


async def priced(caller: Caller, model: str, rate_in: str) -> None:
    """Wait until the gateway knows a price."""

    async def look() -> bool:
        told = (await caller.get(f"/v1/models/{model}")).json()
        return bool(told.get("input_credits_per_token") == rate_in)

    await until(look, what=f"{model} costs {rate_in}")


@pytest.mark.parity(52)
async def test_a_price_that_changes_while_a_call_runs_does_not_change_the_call(system: System) -> None:
    caller = await system.caller("1000")
    await system.set_rate("openai/frozen", "0.001", "0.002")
    await priced(caller, "openai/frozen", "0.001")
    reply = Reply(hold_at=3)
    system.openai.replies(reply)
    old = asyncio.create_task(caller.post(chat(model="openai/frozen", stream=True)))
    await system.openai.asked()
    await system.set_rate("openai/frozen", "0.1", "0.2")
    await priced(caller, "openai/frozen", "0.1")
    new = await caller.post(chat(model="openai/frozen", stream=True))
    reply.released.set()
    assert (await caller.call((await old).headers["x-call-id"]))["credits"] == "0.0170000000"
    assert (await caller.call(new.headers["x-call-id"]))["credits"] == "1.7000000000"


@pytest.mark.parity(56)
async def test_a_call_at_rate_zero_is_recorded_and_costs_nothing(system: System) -> None:
    poor = await system.caller("0.0000000001")
    await system.set_rate("openai/free", "0", "0")
    await priced(poor, "openai/free", "0")
    answer = (await poor.post(chat(model="openai/free"))).json()
    assert answer["usage"]["credits"] == ZERO
    assert await poor.released() == (0, 0, 1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small_holds(tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None) -> AsyncIterator[System]:
    """A hub that holds only 16 output tokens at first."""
    root = tmp_path_factory.mktemp("small-holds") / "hub"
    async with running(root, template_folder, env={"HUB_HOLD_OUTPUT_TOKENS": "16"}, counts={}) as system:
        yield system


LONG = tuple(f" word{number}" for number in range(400))


@pytest.mark.parity(63)
@pytest.mark.parametrize("choices", [1, 3])
async def test_the_hold_of_a_long_answer_grows_so_that_it_is_paid_in_full(small_holds: System, choices: int) -> None:
    caller = await small_holds.caller("10")
    small_holds.openai.always(Reply(pieces=LONG, piece_delay_s=0.001))
    response = await caller.post(chat(stream=True, n=choices))
    assert response.content.endswith(wire.DONE)
    view = await caller.call(response.headers["x-call-id"])
    assert (view["credits"], view["overrun"]) == (f"{Decimal('0.007') + Decimal('0.8') * choices:.10f}", ZERO)
    assert Decimal(view["hold"]) >= Decimal(view["credits"])
    assert await caller.released() == (0, Decimal(view["credits"]), 1)


async def test_a_whole_answer_longer_than_its_hold_is_paid_in_full(small_holds: System) -> None:
    caller = await small_holds.caller("10")
    small_holds.openai.always(Reply(pieces=LONG))
    view = await caller.call((await caller.post(chat())).headers["x-call-id"])
    assert (view["credits"], view["overrun"]) == ("0.8070000000", ZERO)


async def test_an_answer_that_credit_does_not_last_for_ends_properly_and_never_overspends(small_holds: System) -> None:
    caller = await small_holds.caller("0.3")
    small_holds.openai.forget()
    small_holds.openai.always(Reply(pieces=LONG, piece_delay_s=0.005))
    response = await caller.post(chat(stream=True, stream_options={"include_usage": True}))
    *_, finish, used = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    assert finish["choices"][0]["finish_reason"] == "length"
    assert finish["choices"][0]["finish_details"] == {"type": "credit_exhausted"}
    assert response.content.endswith(wire.DONE)
    view = await caller.call(response.headers["x-call-id"])
    assert (view["state"], view["outcome"]) == ("success", "credit_exhausted")
    assert used["usage"]["credits"] == view["credits"]
    standing = await caller.released()
    assert Decimal("0.1") < standing.spent <= Decimal("0.3")
    received = small_holds.openai.journal[0]

    async def gone() -> float | None:
        return received.gone_at

    await until(gone, what="the provider is left")
    assert received.chunks_sent < len(LONG)


# ---- billing off ----------------------------------------------------------------------------------------------------


@pytest.mark.parity(44)
async def test_with_billing_off_calls_are_recorded_and_nothing_is_charged(
    tmp_path: Path, template_folder: Path | None
) -> None:
    async with running(tmp_path / "hub", template_folder, env={"HUB_BILLING": "off"}, counts={}) as system:
        caller = await system.caller("0")
        for body in (chat(), chat(stream=True), chat(model="openai/no-price"), chat(max_tokens=10**9)):
            response = await caller.post(body)
            assert response.status_code == 200, response.text
            view = await caller.call(response.headers["x-call-id"])
            assert (view["state"], view["credits"], view["hold"]) == ("success", ZERO, ZERO)
            assert view["usage"]["output_tokens"] == 5
        info = (await caller.get("/api/user/info")).json()
        assert (info["enableCredit"], info["creditBalance"]) == (False, None)
        assert (await caller.get("/api/v2/status", model="openai/no-price")).json()["available"] is True
        standing = await caller.standing()
        assert (standing.held, standing.spent) == (0, 0)
        rows = await system.hub.value("select count(*) from metering.model_call where account = $1", caller.account)
        assert rows == 4
