"""The meter and its notification setting make themselves, one of each, and what is wrong with them is put right."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from neighbours import Neighbours
from rig.payment_kit import QUICK, LocalKit, served
from rig.waiting import until

from contracts.rpc import payments
from contracts.rpc.payments import PaymentLink, PaymentLinkGet
from metering.payment_kit.meter import setting_body
from metering.payment_kit.settings import COMPONENT_DID
from metering.settings import Settings

METER = "agent-hub-ai-meter-v2"
EVENTS = ["customer.credit_grant.granted", "checkout.session.completed"]
RECORDED = {
    call["what"]: call["requests"][0]["bodyText"]
    for call in json.loads(
        (Path(__file__).parents[4] / "tests/payment_kit/fixtures/payment-kit.json").read_text("utf-8")
    )["calls"]
}


@pytest.fixture
async def kit() -> AsyncIterator[LocalKit]:
    async with served() as kit:
        yield kit


@pytest.fixture
def settings(settings: Settings, kit: LocalKit) -> Settings:
    quick = {name.removeprefix("HUB_").lower(): value for name, value in QUICK.items()}
    return Settings.model_validate(settings.model_dump() | quick | {"payment_kit_url": kit.url})


async def until_made(hub: Neighbours, kit: LocalKit) -> None:
    """The payment link is the last thing that a start makes."""

    async def look() -> bool:
        link = await hub.ask(payments.PAYMENT_LINK, PaymentLinkGet(), PaymentLink)
        return link.link is not None and bool(kit.books.recharge)

    await until(look, within_s=20, what="the meter and what belongs to it")


def kinds(kit: LocalKit) -> list[str]:
    return [line["kind"] for line in kit.books.journal]


def test_a_setting_is_asked_for_with_the_recorded_members_in_their_order() -> None:
    assert json.dumps(setting_body(COMPONENT_DID)) == json.dumps(json.loads(RECORDED["settings.create"]))


async def test_meter_and_setting_are_made_once_by_many_processes_over_a_lost_answer(
    hub: Neighbours, kit: LocalKit
) -> None:
    await until_made(hub, kit)
    await hub.stop_metering()
    kit.books.meters.clear()
    kit.books.settings.clear()
    kit.books.recharge.clear()
    kit.books.journal.clear()
    kit.books.prices.clear()
    kit.books.links.clear()
    lost = {"action": "lose_reply", "times": 1}
    kit.server.faults.replace([{**lost, "path": "/api/settings"}, {**lost, "path": "/api/meters"}])
    await asyncio.gather(*(hub.start_metering() for _ in range(3)))
    await until_made(hub, kit)
    assert [rule.times for rule in kit.server.faults.rules] == [0, 0]
    assert [kinds(kit).count(kind) for kind in ("setting", "meter")] == [1, 1]
    (setting,) = kit.books.settings.values()
    assert (setting["type"], setting["mountLocation"]) == ("notification", COMPONENT_DID)
    assert setting["settings"] == {"self_handle": True, "include_events": EVENTS}
    assert kit.books.meters[METER]["metadata"] == {"setting_id": setting["id"]}


async def test_a_setting_and_a_unit_that_say_something_else_are_put_right(hub: Neighbours, kit: LocalKit) -> None:
    await until_made(hub, kit)
    await hub.stop_metering()
    (setting,) = kit.books.settings.values()
    setting["settings"] = {"self_handle": False, "include_events": ["mine"], "kept": 1}
    del kit.books.meters[METER]
    kit.books.recharge.clear()
    kit.books.prices.clear()
    kit.books.links.clear()
    await hub.start_metering()
    await until_made(hub, kit)
    assert setting["id"] == kit.books.meters[METER]["metadata"]["setting_id"]
    changed = kit.books.settings[COMPONENT_DID]["settings"]
    assert changed == {"self_handle": True, "include_events": ["mine", *EVENTS], "kept": 1}

    await hub.stop_metering()
    meter = kit.books.meters[METER]
    kit.books.renames_currencies = False
    for is_refused in (False, True):
        meter["unit"] = meter["paymentCurrency"]["name"] = meter["paymentCurrency"]["symbol"] = "credits"
        rule = {"action": "error", "path": f"/api/payment-currencies/{meter['currency_id']}", "method": "PUT"}
        kit.server.faults.replace([{**rule, "status": 405}] if is_refused else [])
        kit.books.recharge.clear()
        await hub.restart_metering()
        await until_made(hub, kit)
        named = "credits" if is_refused else "USD"
        assert (meter["unit"], meter["paymentCurrency"]["symbol"], meter["paymentCurrency"]["name"]) == (
            "USD", named, named,
        )  # fmt: skip
