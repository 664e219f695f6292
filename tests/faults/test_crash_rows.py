"""Rows 1 to 16 of the crash table, each with real processes that really die; then the invariants."""

import time
from decimal import Decimal
from typing import TypeVar

import msgspec
import pytest
import pytest_asyncio
from pydantic import BaseModel
from rig.provider_replies import BEFORE_HEAD, INPUT_TOKENS, PIECES, Reply
from rig.waiting import until

from contracts import events, subjects
from contracts.errors import HubError
from contracts.permissions import GATEWAY, JANITOR, ROUTER
from contracts.rpc import conversion
from contracts.rpc.metering import ReserveBatch, ReserveCall, ReserveReply
from faults.clients import Payer, Told
from faults.conftest import SetScene
from faults.scene import CLOSED_WITHIN_S, Scene, of_call, stream_messages
from runtime import rpc

R = TypeVar("R", bound=BaseModel)
PRICE = Decimal("0.001") * INPUT_TOKENS + Decimal("0.002") * len(PIECES)
"""Of the provider's honest answer."""
COMPLETED = subjects.calls_completed(subjects.CallKind.CHAT)
FAILED = subjects.calls_failed(subjects.CallKind.CHAT)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_scene(set_scene: SetScene) -> Scene:
    return await set_scene(counts={"metering": 2}, env={"HUB_SETTLE_S": "7"})


async def one_metering(scene: Scene, point: str = "") -> None:
    """Only `metering` runs, perhaps armed: a call's first turn is its reserve, the next its settling."""
    await scene.hub.kill("metering-2")
    if point:
        await scene.arm("metering", point)


def is_a_failure(told: Told) -> bool:
    """The client cannot take it for an answer."""
    return not told.final and not told.hung and (told.broken or bool(told.error))


async def test_without_a_fault_every_invariant_holds(scene: Scene, payer: Payer) -> None:
    await scene.still_serves(payer)
    account = await scene.at_rest(payer)
    assert [call["credits"] for call in account.calls] == [PRICE, PRICE]
    assert [told.credits for told in payer.journal] == [str(call["credits"]) for call in account.calls]


@pytest.mark.crash(1)
async def test_row_1_gateway_dies_before_the_reserve_and_nothing_is_left(scene: Scene, payer: Payer) -> None:
    await scene.arm("gateway", "gateway.before_reserve:kill")
    told = await payer.chat()
    await scene.died("gateway")
    assert told.broken
    assert not await scene.hub.fetch("select 1 from metering.model_call where account = $1", payer.account)
    await scene.hub.start("gateway")
    await scene.still_serves(payer)
    account = await scene.at_rest(payer)
    assert len(account.calls) == len(account.served) == 2


@pytest.mark.crash(2)
async def test_row_2_metering_dies_after_the_reserve_before_its_reply(scene: Scene, payer: Payer) -> None:
    await one_metering(scene, "metering.reserve_committed:kill")
    told = await payer.chat()
    await scene.died("metering")
    assert (told.status, told.error, told.retry_after) == (503, "service_unavailable", "1")
    row = await scene.row(payer)
    assert row["state"] == "processing"
    await scene.hub.start("metering")

    again = ReserveCall(
        call_id=str(row["id"]), account=payer.account, hold=f"{row['hold']:f}", kind="chat", dialect="openai",
        model="fake/gpt-4o-mini", stream=False, candidates=(), ttl_s=60.0, user="u", project="", key_id="k",
    )  # fmt: skip
    gateway = await scene.hub.connect(GATEWAY)
    answer = await gateway.call(subjects.rpc("metering", "reserve"), msgspec.json.encode(ReserveBatch((again,))), 5.0)
    await gateway.close()
    assert [result.status for result in msgspec.json.decode(answer, type=ReserveReply).results] == ["exists"]
    assert await scene.hub.value("select held from metering.account where id = $1", payer.account) == row["hold"]

    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    account = await scene.at_rest(payer)
    assert len(account.calls) == 1
    assert not account.served


@pytest.mark.crash(3)
@pytest.mark.parametrize("point", ["gateway.after_reserve", "gateway.before_dispatch"])
async def test_row_3_gateway_dies_after_the_reserve_before_the_dispatch(scene: Scene, payer: Payer, point: str) -> None:
    await scene.arm("gateway", f"{point}:kill")
    told = await payer.chat()
    await scene.died("gateway")
    assert told.broken
    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    assert not (await scene.at_rest(payer)).served


@pytest.mark.crash(4)
async def test_row_4_gateway_dies_after_the_dispatch_and_upstream_is_cancelled(scene: Scene, payer: Payer) -> None:
    scene.provider.always(Reply(hold_at=BEFORE_HEAD))
    await scene.arm("gateway", "gateway.after_dispatch:kill")
    told = payer.begin()
    await scene.died("gateway")
    received = await scene.provider.asked()
    closed = await scene.closed(payer, within_s=20.0)
    assert is_a_failure(await payer.ended(told))
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "gateway_lost", 0)
    assert received.gone_at is not None
    await scene.at_rest(payer)


@pytest.mark.crash(4)
async def test_row_4_gateway_dies_in_mid_stream_and_the_cost_is_written_off(scene: Scene, payer: Payer) -> None:
    scene.provider.always(Reply(hold_at=3))
    told = payer.begin(stream=True)
    await told.began.wait()
    await scene.hub.kill("gateway")
    killed_at = time.monotonic()
    closed = await scene.closed(payer, within_s=20.0)
    assert is_a_failure(await payer.ended(told))
    assert (closed["state"], closed["error_code"]) == ("failed", "gateway_lost")
    assert closed["written_off"] > 0
    gone_at = scene.provider.journal[0].gone_at
    assert gone_at is not None
    assert gone_at - killed_at < 3.0
    await scene.at_rest(payer)


@pytest.mark.crash(4)
@pytest.mark.parametrize("stream", [False, True])
async def test_row_4_gateway_dies_when_the_call_is_settled_and_it_is_charged(
    scene: Scene, payer: Payer, stream: bool
) -> None:
    await scene.arm("gateway", "gateway.before_final_frame:kill")
    told = await payer.chat(stream=stream)
    await scene.died("gateway")
    assert is_a_failure(told)
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]


@pytest.mark.crash(5)
async def test_row_5_no_router_listens_and_the_call_fails_at_once(scene: Scene, payer: Payer) -> None:
    await scene.hub.kill("provider-router")
    told = await payer.chat()
    assert (told.status, told.error, told.retry_after) == (503, "router_unavailable", "1")
    assert told.seconds < 1.5
    closed = await scene.closed(payer, within_s=15.0)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "router_unavailable", 0)
    assert not (await scene.at_rest(payer)).served


@pytest.mark.crash(5)
async def test_row_5_router_that_wakes_after_the_call_was_given_up_charges_nothing(scene: Scene, payer: Payer) -> None:
    await scene.hub.pause("provider-router")
    told = await payer.chat()
    assert (told.status, told.error) == (503, "router_unavailable")
    closed = await scene.closed(payer, within_s=15.0)
    assert (closed["state"], closed["error_code"]) == ("failed", "router_unavailable")
    await scene.hub.resume("provider-router")
    await scene.still_serves(payer)
    account = await scene.at_rest(payer, unpaid=1)
    assert account.call(told)["credits"] == 0


@pytest.mark.crash(5)
async def test_row_5_router_dies_before_it_accepts(scene: Scene, payer: Payer) -> None:
    await scene.arm("provider-router", "provider_router.before_accept:kill")
    told = await payer.chat()
    await scene.died("provider-router")
    assert (told.status, told.error) == (503, "router_unavailable")
    closed = await scene.closed(payer, within_s=15.0)
    assert (closed["error_code"], closed["credits"]) == ("router_unavailable", 0)
    assert not (await scene.at_rest(payer)).served


@pytest.mark.crash(6)
async def test_row_6_router_dies_before_it_asks_the_provider(scene: Scene, payer: Payer) -> None:
    await scene.arm("provider-router", "provider_router.before_upstream:kill")
    told = await payer.chat()
    await scene.died("provider-router")
    closed = await scene.closed(payer)
    # Its acceptance may have died with it.
    ends = {(502, "answer_lost"): "stale", (503, "router_unavailable"): "router_unavailable"}
    assert closed["error_code"] == ends[told.status, told.error]
    assert (closed["state"], closed["credits"]) == ("failed", 0)
    assert not (await scene.at_rest(payer)).served


@pytest.mark.crash(7)
async def test_row_7_router_dies_in_mid_stream(scene: Scene, payer: Payer) -> None:
    scene.provider.always(Reply(piece_delay_s=0.05))
    await scene.arm("provider-router", "provider_router.mid_stream:kill:after=2")
    started = time.monotonic()
    told = await payer.chat(stream=True)
    await scene.died("provider-router")
    assert told.status == 200
    assert is_a_failure(told)
    assert told.text
    closed = await scene.closed(payer)
    assert time.monotonic() - started < CLOSED_WITHIN_S
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    assert scene.provider.journal[0].gone_at is not None
    await scene.at_rest(payer)


@pytest.mark.crash(8)
@pytest.mark.parametrize(
    ("point", "stream"), [("provider_router.after_upstream", False), ("provider_router.before_publish", True)]
)
async def test_row_8_router_dies_after_the_answer_before_the_outcome_is_out(
    scene: Scene, payer: Payer, point: str, stream: bool
) -> None:
    await scene.arm("provider-router", f"{point}:kill")
    told = await payer.chat(stream=stream)
    await scene.died("provider-router")
    assert is_a_failure(told)
    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    await scene.at_rest(payer, unpaid=1)


@pytest.mark.crash(9)
async def test_row_9_outcome_published_again_and_again_is_settled_once(scene: Scene, payer: Payer) -> None:
    told = await payer.chat()
    assert told.final
    fact = of_call(await stream_messages(scene.hub, COMPLETED), told.call_id)
    router = await scene.hub.connect(ROUTER)
    js = router.jetstream()
    message_id = events.completed_message_id(told.call_id, 1)
    repeat = await js.publish(COMPLETED, fact, headers={"Nats-Msg-Id": message_id})
    assert repeat.duplicate
    for number in range(3):  # as after the window in which the bus knows repeats
        await js.publish(COMPLETED, fact, headers={"Nats-Msg-Id": f"{message_id}:{number}"})
    await router.close()
    await scene.nothing_waits()
    account = await scene.at_rest(payer)
    assert [call["credits"] for call in account.calls] == [PRICE]


@pytest.mark.crash(9)
async def test_row_9_router_repeats_what_is_not_settled_and_the_client_still_gets_its_answer(
    scene: Scene, payer: Payer
) -> None:
    told = await answered_while_metering_is_dead(scene, payer)
    await scene.logged("provider-router", "outcomes not settled yet")
    await scene.hub.start("metering")
    await payer.ended(told)
    assert told.final
    account = await scene.at_rest(payer)
    assert [call["credits"] for call in account.calls] == [PRICE]


@pytest.mark.crash(9)
@pytest.mark.parametrize("stream", [False, True])
async def test_row_9_a_lost_notice_is_made_good_by_asking_the_books(scene: Scene, payer: Payer, stream: bool) -> None:
    await one_metering(scene, "metering.before_settled:raise:times=1")
    told = await payer.chat(stream=stream)
    assert told.final
    account = await scene.at_rest(payer)
    assert [call["credits"] for call in account.calls] == [PRICE]


@pytest.mark.crash(10)
async def test_row_10_router_dies_after_the_outcome_is_out_before_the_final_frame(scene: Scene, payer: Payer) -> None:
    # Outcome and final frame leave in one write, so what follows the acceptance is dropped on its way.
    frames_lost = "provider_router.before_frames:raise:after=1"
    await scene.arm("provider-router", f"{frames_lost},provider_router.after_publish:kill")
    told = await payer.chat()
    await scene.died("provider-router")
    assert is_a_failure(told)
    assert told.error == "answer_lost"
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]
    view = (await payer.get(f"/api/v2/calls/{account.calls[0]['id']}")).json()
    assert (view["state"], Decimal(view["credits"])) == ("success", PRICE)


@pytest.mark.crash(11)
async def test_row_11_bus_loses_the_outcome_and_the_router_says_it_again(scene: Scene, payer: Payer) -> None:
    told = await answered_while_metering_is_dead(scene, payer)
    await scene.lose_bus()
    await scene.hub.start("metering")
    await payer.ended(told)
    closed = await scene.closed(payer)
    assert (closed["state"], closed["credits"]) == ("success", PRICE)
    await scene.at_rest(payer)


@pytest.mark.crash(11)
async def test_row_11_bus_loses_the_outcome_of_a_router_that_is_dead_too(scene: Scene, payer: Payer) -> None:
    told = await answered_while_metering_is_dead(scene, payer)
    await scene.hub.kill("provider-router")
    await scene.lose_bus()
    await scene.hub.start("metering")
    assert is_a_failure(await payer.ended(told))
    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"], closed["credits"]) == ("failed", "stale", 0)
    await scene.at_rest(payer, unpaid=1)


@pytest.mark.crash(12)
async def test_row_12_metering_dies_before_it_commits_a_settlement(scene: Scene, payer: Payer) -> None:
    await one_metering(scene, "metering.before_commit:kill:after=1")
    told = payer.begin(stream=True)
    await scene.died("metering")
    assert (await scene.row(payer))["state"] == "processing"
    await scene.hub.start("metering")
    await payer.ended(told)
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]
    assert told.final


@pytest.mark.crash(13)
async def test_row_13_metering_dies_after_the_commit_before_the_ack(scene: Scene, payer: Payer) -> None:
    await one_metering(scene, "metering.after_commit:kill:after=1")
    told = payer.begin(stream=True)
    await scene.died("metering")
    assert (await scene.row(payer))["state"] == "success"
    assert await scene.facts() > 0
    await scene.hub.start("metering")
    await payer.ended(told)
    await scene.nothing_waits()
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]
    assert told.final


@pytest.mark.crash(14)
async def test_row_14_link_is_lost_after_the_commit_and_nobody_knows(scene: Scene, payer: Payer) -> None:
    await one_metering(scene, "metering.after_commit:raise:after=1:times=1")
    told = await payer.chat(stream=True)
    assert told.final
    await scene.nothing_waits()
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]


@pytest.mark.crash(14)
async def test_row_14_postgres_dies_inside_the_settling_transaction(scene: Scene, payer: Payer) -> None:
    reply = Reply(hold_at=0)
    scene.provider.always(reply)
    told = payer.begin()
    await scene.provider.asked()
    async with scene.locked(payer):  # the turn waits for this row until its server dies
        reply.released.set()
        await scene.blocked("metering.turn")
        await scene.kill_postgres()
    await scene.hub.start("postgres")
    await payer.ended(told)
    account = await scene.at_rest(payer, within_s=30.0)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]
    scene.provider.always(Reply())
    await scene.still_serves(payer)


@pytest.mark.crash(15)
async def test_row_15_janitor_first_then_the_completion(scene: Scene, payer: Payer) -> None:
    reply = Reply(hold_at=3)
    scene.provider.always(reply)
    told = payer.begin(stream=True)
    await told.began.wait()
    await scene.hub.pause("provider-router")
    closed = await scene.closed(payer)
    assert (closed["state"], closed["error_code"]) == ("failed", "stale")
    assert is_a_failure(await payer.ended(told))
    reply.released.set()
    await scene.hub.resume("provider-router")
    await scene.nothing_left_in("provider-router")
    account = await scene.at_rest(payer, unpaid=1)
    assert (account.call(told)["state"], account.call(told)["credits"]) == ("failed", 0)


@pytest.mark.crash(15)
async def test_row_15_completion_first_then_the_janitor(scene: Scene, payer: Payer) -> None:
    told = await answered_while_metering_is_dead(scene, payer)
    row = await scene.row(payer)
    await publish_stale(scene, payer, str(row["id"]))  # both wait on the stream, for the same turn
    await scene.hub.start("metering")
    await payer.ended(told)
    await scene.nothing_waits()
    await publish_stale(scene, payer, str(row["id"]), epoch_of_id=2)  # and once more, long after
    await scene.nothing_waits()
    account = await scene.at_rest(payer)
    assert [(call["state"], call["credits"]) for call in account.calls] == [("success", PRICE)]
    assert told.final


@pytest.mark.crash(16)
@pytest.mark.parametrize("point", ["metering.before_commit", "metering.before_ack"])
async def test_row_16_metering_sleeps_past_its_time_and_another_one_settles(
    scene: Scene, payer: Payer, point: str
) -> None:
    # The sleeper gets its share of the renewals too, so that a lease this short may end: that race is row 15.
    await scene.hub.kill("janitor")
    after = "" if point == "metering.before_ack" else ":after=1"
    await one_metering(scene, f"{point}:stop{after}")
    told = payer.begin(stream=True)
    await scene.logged("metering", f"failpoint {point}: stop")
    await scene.hub.start("metering-2")
    closed = await scene.closed(payer, within_s=30.0)
    assert (closed["state"], closed["credits"]) == ("success", PRICE)
    await scene.nothing_waits(within_s=40.0)  # the sleeper's own pull request may get the message once more
    await payer.ended(told)
    await scene.hub.resume("metering")
    await scene.still_serves(payer)
    account = await scene.at_rest(payer)
    assert [call["credits"] for call in account.calls] == [PRICE] * 3


@pytest.mark.crash(14)
async def test_row_14_postgres_dies_under_load_and_every_call_is_charged_once_or_not(
    scene: Scene, payer: Payer
) -> None:
    scene.provider.always(Reply(piece_delay_s=0.02))
    running = [payer.begin(stream=number % 2 == 0) for number in range(30)]
    await scene.provider.asked(5)
    await scene.kill_postgres()
    await scene.hub.start("postgres")
    for told in running:
        await payer.ended(told)
    account = await scene.at_rest(payer, within_s=40.0, unpaid=0)
    assert all(told.final or told.error for told in running)
    assert len([call for call in account.calls if call["state"] == "success"]) >= 5


@pytest.mark.parity(69)
async def test_a_conversion_of_the_unit_goes_on_after_metering_has_died_between_two_accounts(
    scene: Scene, payer: Payer
) -> None:
    price = "1.0"  # so that the accounts of all other tests keep what they have
    others = [await scene.payer("3.5") for _ in range(3)]
    await one_metering(scene, "metering.after_conversion:kill:after=1")
    started = conversion.ConversionStart(price=price)

    async def at_rest() -> bool:
        found = await _asked(scene, conversion.CONVERSION_START, started, conversion.Conversion)
        return found.is_known and not found.running

    await until(at_rest, within_s=CLOSED_WITHIN_S, what="no call runs and none is admitted")
    assert (await payer.chat()).error
    page = conversion.ConversionAccounts(price=price, limit=conversion.PAGE_MAX)
    with pytest.raises(HubError):
        await _asked(scene, conversion.CONVERSION_ACCOUNTS, page, conversion.ConversionPage)
    await scene.died("metering")
    done = "select count(*) from metering.conversion_account"
    assert await scene.hub.value(done) == 2
    await scene.hub.start("metering")
    found = await _asked(scene, conversion.CONVERSION_ACCOUNTS, page, conversion.ConversionPage)
    assert {account.problem for account in found.accounts} == {""}
    assert [one.after for one in found.accounts if one.account in {other.account for other in others}] == [
        Decimal("3.5")
    ] * 3
    finish = conversion.ConversionFinish(price=price)
    told = await _asked(scene, conversion.CONVERSION_FINISH, finish, conversion.Conversion)
    assert (told.waiting, told.late, told.before, told.rounding) == (0, 0, told.after, "0")
    assert await scene.hub.fetch("select * from metering.credit_differences()") == []

    async def admitted() -> bool:
        return (await payer.chat()).final

    await until(admitted, within_s=CLOSED_WITHIN_S, what="calls are admitted again")


async def _asked(scene: Scene, method: str, request: BaseModel, reply: type[R]) -> R:
    return await rpc.ask(scene.operator, "metering", method, request, reply, 4.0)


async def answered_while_metering_is_dead(scene: Scene, payer: Payer) -> Told:
    """A call whose outcome lies on the stream, with nobody there to settle it."""
    reply = Reply(hold_at=0)
    scene.provider.always(reply)
    told = payer.begin()
    await scene.provider.asked()
    await scene.hub.kill("metering", "metering-2")
    reply.released.set()
    await scene.stored()
    assert (await scene.row(payer))["state"] == "processing"
    return told


async def publish_stale(scene: Scene, payer: Payer, call_id: str, *, epoch_of_id: int = 1) -> None:
    """What a janitor publishes for a call that it takes for dead; `epoch_of_id` makes its message id another one."""
    fact = events.CallFailed(call_id, 1, payer.account, "chat", "stale", "No sign of life.", events.now_text())
    janitor = await scene.hub.connect(JANITOR)
    message_id = events.stale_message_id(call_id, epoch_of_id)
    await janitor.jetstream().publish(FAILED, msgspec.json.encode(fact), headers={"Nats-Msg-Id": message_id})
    await janitor.close()
