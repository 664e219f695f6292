"""Product, price, payment link and recharge settings make themselves, one of each, and the link outlives outages."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from neighbours import Neighbours
from payment_kit.faults import Action
from rig.payment_kit import QUICK, LocalKit, served
from rig.waiting import until

from contracts.rpc import payments
from contracts.rpc.payments import PaymentLink, PaymentLinkGet
from metering.payment_kit.client import PaymentKitError
from metering.payment_kit.links import base_currency, given, link_body, product_body
from metering.payment_kit.meter import Meter
from metering.settings import Settings

RECORDED = {
    call["what"]: call["requests"][0]["bodyText"]
    for call in json.loads(
        (Path(__file__).parents[4] / "tests/payment_kit/fixtures/payment-kit.json").read_text("utf-8")
    )["calls"]
}
PRODUCTS, LINKS, RECHARGE = "/api/products", "/api/payment-links", "/api/payment-currencies/pc_1/recharge-config"


@pytest.fixture
async def kit() -> AsyncIterator[LocalKit]:
    async with served() as kit:
        yield kit


@pytest.fixture
def settings(settings: Settings, kit: LocalKit, request: pytest.FixtureRequest) -> Settings:
    quick = {name.removeprefix("HUB_").lower(): value for name, value in QUICK.items()}
    more = getattr(request, "param", {})
    return Settings.model_validate(settings.model_dump() | quick | {"payment_kit_url": kit.url} | more)


async def link(hub: Neighbours) -> str | None:
    return (await hub.ask(payments.PAYMENT_LINK, PaymentLinkGet(), PaymentLink)).link


async def until_linked(hub: Neighbours, kit: LocalKit) -> str:
    async def look() -> str | None:
        return await link(hub) if kit.books.recharge else None

    found = await until(look, within_s=15, what="the payment link and what belongs to it")
    assert found is not None
    return found


def made(kit: LocalKit) -> list[str]:
    return [line["kind"] for line in kit.books.journal if line["kind"] in {"product", "link", "recharge"}]


def test_what_is_made_has_the_recorded_members_in_their_order() -> None:
    meter = Meter("mtr_1", "agent-hub-ai-meter", "pc_1", 10)
    recorded = json.loads(RECORDED["products.create (credit pack)"]) | {"description": "Credits for AI models"}
    ours = product_body("DEFAULT_CREDIT_UNIT_PRICE", meter, "pc_usd", "1")
    assert json.dumps(ours) == json.dumps(recorded)
    ours = link_body("price_1", "DEFAULT_CREDIT_PAYMENT_LINK")
    wanted = json.loads(RECORDED["paymentLinks.create"])
    assert ours == wanted
    assert list(ours) == list(wanted)


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ([{"id": "pc_abt", "symbol": "ABT"}, {"id": "pc_usd", "symbol": "USD"}], "pc_usd"),
        ([{"id": "pc_1", "symbol": "USD", "type": "credit"}, {"id": "pc_abt", "symbol": "ABT"}], "pc_abt"),
        ([{"id": "pc_1", "symbol": "USD", "active": False}, {"id": "pc_2", "symbol": "USD", "active": True}], "pc_2"),
        ([], None),
        ([{"id": "pc_1", "symbol": "USD", "type": "credit"}, "no", {"symbol": "USD"}], None),
    ],
)
def test_credits_are_sold_for_dollars_where_there_are_some(listed: list[Any], chosen: str | None) -> None:
    if chosen is None:
        with pytest.raises(PaymentKitError) as refused:
            base_currency(listed)
        assert refused.value.reason == "no_currency"
    else:
        assert base_currency(listed) == chosen


@pytest.mark.parity(67)
async def test_product_link_and_recharge_settings_make_themselves_once(hub: Neighbours, kit: LocalKit) -> None:
    await asyncio.gather(hub.start_metering(), hub.start_metering())
    assert await until_linked(hub, kit) == f"{kit.url}/checkout/pay/plink_1"
    (price,) = kit.books.prices.values()
    assert (price["lookup_key"], price["unit_amount"], price["currency_id"]) == (
        "DEFAULT_CREDIT_UNIT_PRICE_V2", "1", "pc_usd",
    )  # fmt: skip
    assert price["metadata"]["credit_config"]["currency_id"] == kit.books.meters["agent-hub-ai-meter-v2"]["currency_id"]
    assert kit.books.recharge == {
        "pc_1": {"base_price_id": "price_1", "payment_link_id": "plink_1", "checkout_url": ""}
    }
    await hub.restart_metering()
    await until_linked(hub, kit)
    assert made(kit) == ["product", "link", "recharge"]


@pytest.mark.parity(67)
@pytest.mark.parametrize("settings", [{"payment_kit_unit": "credits", "credit_price": "0.0000025"}], indirect=True)
async def test_older_credits_have_a_product_of_their_own(hub: Neighbours, kit: LocalKit) -> None:
    await until_linked(hub, kit)
    (price,) = kit.books.prices.values()
    assert (price["lookup_key"], price["unit_amount"]) == ("DEFAULT_CREDIT_UNIT_PRICE", "0.0000025")
    assert list(kit.books.links) == ["DEFAULT_CREDIT_PAYMENT_LINK"]


@pytest.mark.parametrize("action", ["lose_reply", "html"])
async def test_answers_that_are_lost_leave_one_of_each(hub: Neighbours, kit: LocalKit, action: Action) -> None:
    await until_linked(hub, kit)
    await hub.stop_metering()
    kit.books.products.clear()
    kit.books.prices.clear()
    kit.books.links.clear()
    kit.books.recharge.clear()
    kit.books.journal.clear()
    kit.server.faults.replace(
        [
            {"action": action, "path": PRODUCTS, "times": 1},
            {"action": action, "path": LINKS, "times": 1},
            {"action": action, "path": RECHARGE, "method": "PUT", "times": 1},
        ]
    )
    await hub.start_metering()
    await until(lambda: _is(not kit.server.faults.rules[2].times), within_s=20, what="all three faults have hit")
    await until_linked(hub, kit)
    kinds = made(kit)
    assert [kinds.count(kind) for kind in ("product", "link")] == [1, 1]


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parity(67)
async def test_the_link_is_known_while_payment_kit_is_away(hub: Neighbours, kit: LocalKit) -> None:
    before = await until_linked(hub, kit)
    await kit.stop()
    assert await link(hub) == before
    await hub.restart_metering()
    assert await link(hub) == before
    await kit.start()


async def test_what_somebody_else_has_made_is_used_and_left_alone(hub: Neighbours, kit: LocalKit) -> None:
    await until_linked(hub, kit)
    await hub.stop_metering()
    chosen = {"base_price_id": "price_9", "payment_link_id": "plink_9", "checkout_url": ""}
    kit.books.recharge["pc_1"] = chosen
    kit.books.links["DEFAULT_CREDIT_PAYMENT_LINK_V2"]["id"] = "plink_7"
    count = len(kit.books.journal)
    await hub.start_metering()

    async def found() -> bool:
        return await link(hub) == f"{kit.url}/checkout/pay/plink_7"

    await until(found, within_s=15, what="the other link")
    assert kit.books.recharge["pc_1"] == chosen
    assert made(kit)[count:] == []


@pytest.mark.parity(67)
@pytest.mark.parametrize("settings", [{"payment_link": "/checkout/pay/plink_mine"}], indirect=True)
async def test_the_operators_own_link_wins_and_nothing_is_made(hub: Neighbours, kit: LocalKit) -> None:
    assert await link(hub) == f"{kit.url}/checkout/pay/plink_mine"
    assert made(kit) == []


def test_a_whole_url_is_told_as_it_is(settings: Settings) -> None:
    other = Settings.model_validate(settings.model_dump() | {"payment_link": "https://shop.example/credits"})
    assert given(other) == "https://shop.example/credits"


@pytest.mark.parametrize("payment_link", ["javascript:alert(1)", "//elsewhere.example", "ftp://x", "https://a\nb", "x"])
def test_a_link_that_is_none_is_refused_at_start(settings: Settings, payment_link: str) -> None:
    with pytest.raises(ValueError, match="payment link"):
        Settings.model_validate(settings.model_dump() | {"payment_link": payment_link})


def test_a_path_needs_a_payment_kit(settings: Settings) -> None:
    with pytest.raises(ValueError, match="HUB_PAYMENT_KIT_URL"):
        Settings.model_validate(settings.model_dump() | {"payment_link": "/pay", "payment_kit_url": ""})
