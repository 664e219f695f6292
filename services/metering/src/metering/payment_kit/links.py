"""The page where users buy credits at Payment Kit: product, price, payment link and recharge settings make themselves.

Each is looked for by its lookup key before it is made, and made by one process at a time, so that two processes, a
crash or a lost answer leave one of each. What was found is kept in the books: it outlives any outage.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from contracts.money import to_text
from contracts.rpc.payments import PaymentLink, PaymentLinkGet
from metering.payment_kit.amounts import to_decimal_text
from metering.payment_kit.circuit import backoff_s
from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.making import BusyError, alone
from metering.payment_kit.meter import EVENTS, Meter, Meters, Unit
from metering.payment_kit.outbox import TransientErrors
from metering.payment_kit.settings import PaymentKitSettings
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
NAME: Final = "Basic AIGNE Hub Credit Packs"
KEEP_S: Final = 86_400.0
_BUSY_S: Final = 1.0
_QUANTITY_MAX: Final = 100_000_000
_NOT_FOUND: Final = 404
_KEYS: Final[dict[Unit, tuple[str, str]]] = {
    "USD": ("DEFAULT_CREDIT_UNIT_PRICE_V2", "DEFAULT_CREDIT_PAYMENT_LINK_V2"),
    "credits": ("DEFAULT_CREDIT_UNIT_PRICE", "DEFAULT_CREDIT_PAYMENT_LINK"),
}
"""Lookup keys of price and payment link."""
_KNOWN: Final = "select link_id from metering.payment_link where kit = $1 and livemode = $2 and unit = $3"
_KEEP: Final = """
insert into metering.payment_link (kit, livemode, unit, link_id) values ($1, $2, $3, $4)
on conflict (kit, livemode, unit) do update set link_id = excluded.link_id, found_at = now()
"""


@dataclass(slots=True)
class Links:
    """Answers `payment_link`, and sees to it that there is one."""

    kit: PaymentKit
    meters: Meters
    pool: Pool
    settings: PaymentKitSettings
    _url: str | None = field(default=None)

    async def current(self, _request: PaymentLinkGet) -> PaymentLink:
        """Answers with `url`."""
        return PaymentLink(link=await self.url())

    async def url(self) -> str | None:
        """The link that users are told; None until it was found for the first time.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: the books do not answer.
        """
        if self.settings.payment_link is not None:
            return given(self.settings)
        if self._url is None:
            link_id = await self.pool.fetchval(_KNOWN, *self._place)
            self._url = None if link_id is None else self._page(link_id)
        return self._url

    async def run(self) -> None:
        """Find or make the link, and look again each day, until cancelled."""
        tries = 0
        while self.settings.payment_link is None:
            try:
                await self.look()
                tries, wait_s = 0, KEEP_S
            except BusyError:
                wait_s = _BUSY_S
            except PaymentKitError as error:
                tries += 1
                wait_s = max(error.retry_after_s, backoff_s(tries, self.settings.payment_kit_backoff_max_s))
                _log.warning("payment link waits", reason=error.reason, status=error.status, detail=error.detail[:200])
            except TransientErrors as error:
                tries += 1
                wait_s = backoff_s(tries, self.settings.payment_kit_backoff_max_s)
                _log.warning("payment link waits", reason=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(wait_s)

    async def look(self) -> None:
        """Find all that belongs to the link, and make what is missing.

        Raises:
            PaymentKitError: Payment Kit does not answer, refuses, or answers with something else.
            asyncpg.PostgresError, OSError, TimeoutError: the books do not answer.
        """
        meter = await self.meters.get()
        price_key, link_key = _KEYS[self.settings.payment_kit_unit]
        link_id = await self._found(f"/api/payment-links/{part(link_key)}")
        price_id = await self._found(f"/api/prices/{part(price_key)}")
        if link_id is None or price_id is None:
            price_id, link_id = await self._made(meter, price_key, link_key)
        await self.pool.execute(_KEEP, *self._place, link_id)
        self._url = self._page(link_id)
        await self._set_recharge(meter, price_id, link_id)

    async def _made(self, meter: Meter, price_key: str, link_key: str) -> tuple[str, str]:
        """Price and link, made as far as they are missing, by this process alone."""
        async with alone(self.pool):
            price_id = await self._found(f"/api/prices/{part(price_key)}")
            if price_id is None:
                await self.kit.ask("POST", "/api/products", body=await self._product(meter, price_key))
                price_id = _needed(await self._found(f"/api/prices/{part(price_key)}"), "price")
                _log.info("credit product made", lookup_key=price_key)
            link_id = await self._found(f"/api/payment-links/{part(link_key)}")
            if link_id is None:
                await self.kit.ask("POST", "/api/payment-links", body=link_body(price_id, link_key))
                link_id = _needed(await self._found(f"/api/payment-links/{part(link_key)}"), "payment link")
                _log.info("payment link made", lookup_key=link_key)
            return price_id, link_id

    async def _found(self, path: str) -> str | None:
        """Id of what has this lookup key; None when Payment Kit has none, also when it answers `null`."""
        try:
            found = await self.kit.ask("GET", path)
        except PaymentKitError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        if found is None:
            return None
        thing_id = found.get("id") if isinstance(found, dict) else None
        if not isinstance(thing_id, str) or not thing_id.isascii() or not thing_id.replace("_", "").isalnum():
            raise PaymentKitError("no_id", detail="an answer without an id")
        return thing_id

    async def _product(self, meter: Meter, price_key: str) -> dict[str, Any]:
        listed = await self.kit.ask("GET", "/api/payment-currencies")
        if isinstance(listed, dict):
            listed = listed.get("list")
        if not isinstance(listed, list):
            raise PaymentKitError("no_list", detail="an answer that is no list of currencies")
        return product_body(price_key, meter, base_currency(listed), to_decimal_text(self.settings.credit_price))

    async def _set_recharge(self, meter: Meter, price_id: str, link_id: str) -> None:
        """What auto top-up buys, unless somebody has chosen that already."""
        path = f"/api/payment-currencies/{part(meter.currency_id)}/recharge-config"
        if await self._has_recharge(path):
            return
        async with alone(self.pool):
            if await self._has_recharge(path):
                return
            wanted = {"base_price_id": price_id, "payment_link_id": link_id, "checkout_url": ""}
            await self.kit.ask("PUT", path, body=wanted)
            _log.info("recharge settings made", price=price_id, credit_price=to_text(self.settings.credit_price))

    async def _has_recharge(self, path: str) -> bool:
        try:
            known = await self.kit.ask("GET", path)
        except PaymentKitError as error:
            if error.status != _NOT_FOUND:
                raise
            return False
        nested = known.get("recharge_config", known) if isinstance(known, dict) else None
        return isinstance(nested, dict) and bool(nested.get("base_price_id"))

    def _page(self, link_id: str) -> str:
        return f"{self.settings.payment_kit_url}/checkout/pay/{link_id}"

    @property
    def _place(self) -> tuple[str, bool, str]:
        s = self.settings
        return s.payment_kit_url, s.payment_kit_livemode, s.payment_kit_unit


def given(settings: PaymentKitSettings) -> str | None:
    """The link of the setting; a path means a page of Payment Kit."""
    link = settings.payment_link
    return f"{settings.payment_kit_url}{link}" if link is not None and link.startswith("/") else link


def base_currency(listed: list[Any]) -> str:
    """Id of the currency in which credits are sold: US dollars where there are some, else the first that is money.

    Raises:
        PaymentKitError: `no_currency`.
    """
    money = [
        one
        for one in listed
        if isinstance(one, dict) and isinstance(one.get("id"), str) and one.get("type") != "credit"
        and one.get("active") is not False
    ]  # fmt: skip
    if not money:
        raise PaymentKitError("no_currency", detail="Payment Kit has no currency in which credits could be sold")
    return str(next((one for one in money if one.get("symbol") == "USD"), money[0])["id"])


def product_body(price_key: str, meter: Meter, currency: str, unit_amount: str) -> dict[str, Any]:
    """The product, with the price of one credit."""
    return {
        "name": NAME,
        "description": "Credits for AI models",
        "type": "credit",
        "prices": [
            {
                "type": "one_time",
                "unit_amount": unit_amount,
                "currency_id": currency,
                "currency_options": [{"currency_id": currency, "unit_amount": unit_amount}],
                "lookup_key": price_key,
                "nickname": "Per Unit Credit For AIGNE Hub",
                "metadata": {
                    "credit_config": {
                        "priority": 50,
                        "valid_duration_value": 0,
                        "valid_duration_unit": "days",
                        "currency_id": meter.currency_id,
                        "credit_amount": "1",
                    },
                    "meter_id": meter.id,
                },
            }
        ],
    }


def link_body(price_id: str, link_key: str) -> dict[str, Any]:
    """The payment link: as many credits as one likes."""
    return {
        "name": NAME,
        "lookup_key": link_key,
        "line_items": [
            {
                "price_id": price_id,
                "quantity": 1,
                "adjustable_quantity": {"enabled": True, "minimum": 1, "maximum": _QUANTITY_MAX},
            }
        ],
        "metadata": {"notification_settings": {"include_events": list(EVENTS), "self_handle": True}},
    }


def _needed(thing_id: str | None, what: str) -> str:
    if thing_id is None:
        raise PaymentKitError("not_made", detail=f"the {what} was made and is not there", transient=True)
    return thing_id
