"""What this Payment Kit knows. Every change is a journal entry; replaying them in order gives the same books.

Amounts are integers of the smallest unit, ten decimal places as for the hub's credits.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

PLACES = 10
_VALUE = re.compile(r"\d{1,30}(\.\d{1,10})?")
_PRICE = re.compile(r"\d{1,12}(\.\d{1,18})?")


class RefusedError(Exception):
    """A request that cannot be served: an HTTP status and an error text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class DuplicateError(Exception):
    """A meter event whose identifier is known."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event["identifier"])
        self.event = event


@dataclass
class Books:
    """Meters, customers, grants and events."""

    file: Path | None = None
    clock: Callable[[], float] = time.time
    dedup_s: float | None = None
    """Identifiers older than this are forgotten; None = never."""
    journal: list[dict[str, Any]] = field(default_factory=list)
    meters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By event name."""
    customers: dict[str, str] = field(default_factory=dict)
    """DID → id."""
    grants: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    transactions: list[dict[str, Any]] = field(default_factory=list)
    webhooks: list[dict[str, Any]] = field(default_factory=list)
    products: list[dict[str, Any]] = field(default_factory=list)
    prices: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By lookup key; so are payment links."""
    links: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By mount location."""
    renames_currencies: bool = True
    """Whether a meter's new unit names its currency, too."""
    recharge: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Recharge settings by currency."""
    recharging: set[str] = field(default_factory=set)
    """Customers whose balance is topped up automatically."""
    _identifiers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _dids: dict[str, str] = field(default_factory=dict)
    _open: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By customer: events that are not wholly paid, oldest first."""
    _out: IO[bytes] | None = None

    @classmethod
    def opened(cls, file: Path | None, dedup_s: float | None = None) -> "Books":
        """The books of a journal file, or new ones. A line that a crash cut off was never answered."""
        books = cls(file, dedup_s=dedup_s)
        if file is not None and file.exists():
            whole = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            file.write_bytes(b"".join(whole))
            for line in whole:
                books._apply(json.loads(line))
        return books

    # ---- changes ----------------------------------------------------------------------------------------------------

    def make_meter(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A meter with a currency of its own."""
        event_name = wanted.get("event_name")
        if not isinstance(event_name, str) or not isinstance(wanted.get("unit"), str):
            raise RefusedError(400, '"event_name" and "unit" are required')
        if event_name in self.meters:
            raise RefusedError(400, f"Meter with event_name {event_name} already exists")
        self._write("meter", {"wanted": wanted})
        return self.meters[event_name]

    def change_meter(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Another unit."""
        meter = self.meter(name)
        self._write("meter_unit", {"event_name": meter["event_name"], "unit": wanted["unit"]})
        return meter

    def change_currency(self, currency: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Another name or symbol."""
        if currency not in {meter["currency_id"] for meter in self.meters.values()}:
            raise RefusedError(404, "Currency not found")
        self._write("currency", {"currency": currency, "wanted": wanted})
        return {"id": currency, **wanted}

    def make_setting(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A setting, one per mount location."""
        if not isinstance(wanted.get("mountLocation"), str) or wanted.get("type") != "notification":
            raise RefusedError(400, '"type" and "mountLocation" are required')
        if wanted["mountLocation"] in self.settings:
            raise RefusedError(400, "Setting already exists")
        self._write("setting", {"wanted": wanted})
        return self.settings[wanted["mountLocation"]]

    def setting(self, name: str) -> dict[str, Any]:
        """By mount location or id."""
        for place, setting in self.settings.items():
            if name in {place, setting["id"]}:
                return setting
        raise RefusedError(404, "Setting not found")

    def change_setting(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Other settings."""
        setting = self.setting(name)
        self._write("setting_change", {"place": setting["mountLocation"], "settings": wanted["settings"]})
        return setting

    def make_customer(self, did: str) -> dict[str, Any]:
        """A customer, if there is none of this DID."""
        if did not in self.customers:
            self._write("customer", {"did": did})
        return self.customer(did)

    def make_grant(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Credits for a customer; debts are paid from it at once."""
        customer = self.customer(str(wanted.get("customer_id")))
        amount = wanted.get("amount")
        if not isinstance(amount, str) or not _VALUE.fullmatch(amount):
            raise RefusedError(400, '"amount" must be a decimal string')
        if wanted.get("currency_id") not in {meter["currency_id"] for meter in self.meters.values()}:
            raise RefusedError(400, "Currency not found")
        self._write("grant", {"wanted": {**wanted, "customer_id": customer["id"]}})
        return self.grants[-1]

    def grant(self, grant_id: str) -> dict[str, Any]:
        """By id."""
        for grant in self.grants:
            if grant["id"] == grant_id:
                return grant
        raise RefusedError(404, "Credit grant not found")

    def change_grant(self, grant_id: str, wanted: dict[str, Any]) -> None:
        """Other metadata in place of the old, or an end now: `{metadata?, expired?}`, as in the published types."""
        grant = self.grant(grant_id)
        if wanted.get("expired") and grant["status"] not in {"granted", "pending"}:
            raise RefusedError(400, f"Credit grant is {grant['status']}")
        self._write("grant_change", {"id": grant_id, "wanted": wanted})

    def make_event(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Usage: consumes grants, the rest stays pending.

        Raises:
            DuplicateError: the identifier is known.
            RefusedError: a member is missing or wrong.
        """
        meter = self.meters.get(str(wanted.get("event_name")))
        if meter is None:
            raise RefusedError(404, "Meter not found")
        payload, identifier = wanted.get("payload") or {}, wanted.get("identifier")
        if not isinstance(identifier, str) or not identifier:
            raise RefusedError(400, '"identifier" is required')
        value = payload.get("value")
        if not isinstance(value, str) or not _VALUE.fullmatch(value) or Decimal(value) == 0:
            raise RefusedError(400, '"payload.value" must be a positive decimal string')
        known = self._identifiers.get(identifier)
        if known is not None and (self.dedup_s is None or self.clock() - known["arrived_at"] < self.dedup_s):
            raise DuplicateError(known)
        self.customer(str(payload.get("customer_id")))
        self._write("meter_event", {"wanted": wanted})
        return self.events[-1]

    def add_webhook(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where events of ours are sent."""
        self._write("webhook", {"wanted": wanted})
        return self.webhooks[-1]

    def make_product(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A product with its prices."""
        for price in wanted.get("prices") or [{}]:
            amount, currency = price.get("unit_amount"), price.get("currency_id")
            if not isinstance(amount, str) or not _PRICE.fullmatch(amount) or Decimal(amount) == 0:
                raise RefusedError(400, '"prices[0].unit_amount" must be a positive decimal string')
            if currency not in {one["id"] for one in self.currencies() if one["type"] != "credit"}:
                raise RefusedError(400, "currency used in price not found or not active")
            if price.get("lookup_key") in self.prices:
                raise RefusedError(400, f"lookup key {price['lookup_key']} already exists")
            config = price.get("metadata", {}).get("credit_config", {})
            if config.get("currency_id") not in {meter["currency_id"] for meter in self.meters.values()}:
                raise RefusedError(400, "Credit currency not found")
        self._write("product", {"wanted": wanted})
        return self.products[-1]

    def make_link(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A payment link for prices that are there."""
        prices = {price["id"] for price in self.prices.values()}
        items = wanted.get("line_items")
        if not items or any(item.get("price_id") not in prices for item in items):
            raise RefusedError(400, "Price not found")
        if wanted.get("lookup_key") in self.links:
            raise RefusedError(400, f"lookup key {wanted['lookup_key']} already exists")
        self._write("link", {"wanted": wanted})
        return self.links[wanted["lookup_key"]]

    def set_recharge(self, currency: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """What auto top-up buys."""
        if currency not in {one["id"] for one in self.currencies()}:
            raise RefusedError(404, "Currency not found")
        self._write("recharge", {"currency": currency, "wanted": wanted})
        return self.recharge[currency]

    # ---- what a Payment Kit must never do ---------------------------------------------------------------------------

    def lose(self, identifier: str) -> None:
        """An event that was answered with success is gone, as after a restore from yesterday."""
        self._write("lost", {"identifier": identifier})

    def change(self, identifier: str, value: str) -> None:
        """An event has another value than the one it came with."""
        self._write("changed", {"identifier": identifier, "value": value})

    # ---- questions --------------------------------------------------------------------------------------------------

    def meter(self, name: str) -> dict[str, Any]:
        """By event name or id."""
        for meter in self.meters.values():
            if name in {meter["event_name"], meter["id"]}:
                return meter
        raise RefusedError(404, "Meter not found")

    def currencies(self) -> list[dict[str, Any]]:
        """Money of three kinds, and the credits of each meter."""
        money = [
            {"id": "pc_abt", "symbol": "ABT", "decimal": 18, "type": "standard", "active": True},
            {"id": "pc_old", "symbol": "USD", "decimal": 2, "type": "standard", "active": False},
            {"id": "pc_usd", "symbol": "USD", "decimal": 2, "type": "standard", "active": True},
        ]
        credits_ = [{**meter["paymentCurrency"], "type": "credit", "active": True} for meter in self.meters.values()]
        return [*credits_, *money]

    def customer(self, name: str) -> dict[str, Any]:
        """By id or DID."""
        customer_id = name if name in self._dids else self.customers.get(name)
        if customer_id is None:
            raise RefusedError(404, f"Customer {name} not found")
        return {"id": customer_id, "did": self._dids[customer_id], "livemode": True, "metadata": {}}

    def balance(self, customer: str, currency: str) -> tuple[int, int, int]:
        """Granted, remaining, and the number of grants that are not used up."""
        live = [grant for grant in self._usable(customer) if grant["currency_id"] == currency]
        total = sum(
            int(g["amount"]) for g in self.grants if g["customer_id"] == customer and g["currency_id"] == currency
        )
        return total, sum(int(grant["remaining_amount"]) for grant in live), len(live)

    def pending(self, customer: str, currency: str) -> int:
        """What could not be taken from grants."""
        return sum(
            int(event["credit_pending"])
            for event in self._open.get(customer, ())
            if self.meters[event["event_name"]]["currency_id"] == currency
        )

    def events_between(self, event_name: str, customer: str, start: int, end: int) -> list[dict[str, Any]]:
        """Events of a customer by their own time, newest first."""
        return [
            event
            for event in reversed(self.events)
            if event["event_name"] == event_name
            and event["payload"]["customer_id"] == customer
            and start <= event["timestamp"] <= end
        ]

    # ---- the journal ------------------------------------------------------------------------------------------------

    def _write(self, kind: str, entry: dict[str, Any]) -> None:
        line = {"number": len(self.journal) + 1, "kind": kind, "at": self.clock(), **entry}
        if self.file is not None:
            self._out = self._out or self.file.open("ab")
            self._out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._out.flush()  # with the kernel: a killed process loses nothing of it
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        self.journal.append(line)
        getattr(self, f"_apply_{line['kind']}")(line)

    def _apply_meter(self, line: dict[str, Any]) -> None:
        number = len(self.meters) + 1
        wanted, currency = line["wanted"], f"pc_{number}"
        self.meters[wanted["event_name"]] = {
            **wanted,
            "id": f"mtr_{number}",
            "status": "active",
            "livemode": True,
            "currency_id": currency,
            "paymentCurrency": {"id": currency, "name": wanted["unit"], "symbol": wanted["unit"], "decimal": PLACES},
        }

    def _apply_meter_unit(self, line: dict[str, Any]) -> None:
        meter = self.meters[line["event_name"]]
        meter["unit"] = line["unit"]
        if self.renames_currencies:
            meter["paymentCurrency"]["name"] = meter["paymentCurrency"]["symbol"] = line["unit"]

    def _apply_currency(self, line: dict[str, Any]) -> None:
        for meter in self.meters.values():
            if meter["currency_id"] == line["currency"]:
                meter["paymentCurrency"] |= line["wanted"]

    def _apply_setting(self, line: dict[str, Any]) -> None:
        wanted = line["wanted"]
        self.settings[wanted["mountLocation"]] = {**wanted, "id": f"set_{len(self.settings) + 1}", "livemode": True}

    def _apply_setting_change(self, line: dict[str, Any]) -> None:
        self.settings[line["place"]]["settings"] = line["settings"]

    def _apply_customer(self, line: dict[str, Any]) -> None:
        customer = f"cus_{len(self.customers) + 1}"
        self.customers[line["did"]] = customer
        self._dids[customer] = line["did"]

    def _apply_grant(self, line: dict[str, Any]) -> None:
        wanted = line["wanted"]
        amount = str(int(Decimal(wanted["amount"]).scaleb(PLACES)))
        grant = {
            "priority": 50,
            "expires_at": 0,
            "metadata": {},
            **wanted,
            "id": f"crdg_{len(self.grants) + 1}",
            "amount": amount,
            "remaining_amount": amount,
            "status": "pending" if wanted.get("effective_at", 0) > line["at"] else "granted",
            "livemode": True,
        }
        self.grants.append(grant)
        for event in self._open.pop(grant["customer_id"], []):
            self._consume(event)

    def _apply_grant_change(self, line: dict[str, Any]) -> None:
        grant, wanted = self.grant(line["id"]), line["wanted"]
        if "metadata" in wanted:
            grant["metadata"] = wanted["metadata"]
        if wanted.get("expired"):
            grant["status"] = "expired"

    def _apply_meter_event(self, line: dict[str, Any]) -> None:
        wanted = line["wanted"]
        value = int(Decimal(wanted["payload"]["value"]).scaleb(PLACES))
        event = {
            **wanted,
            "id": f"mev_{len(self.events) + 1}",
            "payload": {**wanted["payload"], "customer_id": self.customer(wanted["payload"]["customer_id"])["id"]},
            "timestamp": wanted.get("timestamp", int(line["at"])),
            "arrived_at": line["at"],
            "livemode": True,
            "attempt_count": 1,
            "credit_consumed": "0",
            "credit_pending": str(value),
        }
        self.events.append(event)
        self._identifiers[event["identifier"]] = event
        self._consume(event)

    def _apply_lost(self, line: dict[str, Any]) -> None:
        event = self._identifiers.pop(line["identifier"])
        self.events.remove(event)
        self._give_back(event)

    def _apply_changed(self, line: dict[str, Any]) -> None:
        event = self._identifiers[line["identifier"]]
        self._give_back(event)
        event["payload"] = {**event["payload"], "value": line["value"]}
        event |= {"credit_consumed": "0", "credit_pending": str(int(Decimal(line["value"]).scaleb(PLACES)))}
        self._consume(event)

    def _apply_webhook(self, line: dict[str, Any]) -> None:
        self.webhooks.append({**line["wanted"], "id": f"we_{len(self.webhooks) + 1}", "livemode": True})

    def _apply_product(self, line: dict[str, Any]) -> None:
        product_id = f"prod_{len(self.products) + 1}"
        prices = []
        for wanted in line["wanted"]["prices"]:
            price = {**wanted, "id": f"price_{len(self.prices) + 1}", "product_id": product_id, "livemode": True}
            self.prices[wanted["lookup_key"]] = price
            prices.append(price)
        self.products.append({**line["wanted"], "id": product_id, "prices": prices, "livemode": True})

    def _apply_link(self, line: dict[str, Any]) -> None:
        wanted = line["wanted"]
        link = {**wanted, "id": f"plink_{len(self.links) + 1}", "active": True, "livemode": True}
        self.links[wanted["lookup_key"]] = link

    def _apply_recharge(self, line: dict[str, Any]) -> None:
        self.recharge[line["currency"]] = line["wanted"]

    def _consume(self, event: dict[str, Any]) -> None:
        currency = self.meters[event["event_name"]]["currency_id"]
        for grant in self._usable(event["payload"]["customer_id"]):
            owed, left = int(event["credit_pending"]), int(grant["remaining_amount"])
            taken = min(owed, left) if grant["currency_id"] == currency else 0
            if taken:
                grant["remaining_amount"] = str(left - taken)
                grant["status"] = "granted" if left > taken else "depleted"
                event["credit_pending"] = str(owed - taken)
                event["credit_consumed"] = str(int(event["credit_consumed"]) + taken)
                self.transactions.append(
                    {
                        "id": f"ctx_{len(self.transactions) + 1}",
                        "customer_id": grant["customer_id"],
                        "credit_grant_id": grant["id"],
                        "credit_amount": str(taken),
                        "quantity": event["payload"]["value"],
                        "remaining_balance": grant["remaining_amount"],
                        "meter_event_name": event["event_name"],
                    }
                )
        event["status"] = "completed" if event["credit_pending"] == "0" else "requires_action"
        if event["credit_pending"] != "0":
            self._open.setdefault(event["payload"]["customer_id"], []).append(event)

    def _give_back(self, event: dict[str, Any]) -> None:
        """What an event consumed is in the customer's newest grant again."""
        customer = event["payload"]["customer_id"]
        self._open[customer] = [other for other in self._open.get(customer, []) if other is not event]
        if event["credit_consumed"] != "0":
            grant = [grant for grant in self.grants if grant["customer_id"] == customer][-1]
            grant["remaining_amount"] = str(int(grant["remaining_amount"]) + int(event["credit_consumed"]))
            grant["status"] = "granted"

    def _usable(self, customer: str) -> Iterator[dict[str, Any]]:
        """Grants that have something left, in the order in which they are used."""
        now = self.clock()
        live = [
            grant
            for grant in self.grants
            if grant["customer_id"] == customer
            and grant["status"] == "granted"
            and not 0 < grant["expires_at"] <= now
            and int(grant["remaining_amount"]) > 0
        ]
        return iter(sorted(live, key=lambda grant: (grant["priority"], grant["expires_at"] or 1e18)))
