"""The HTTP side: signed calls under `/api/`, and `/control/` for tests, which is open on loopback."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx2

from payment_kit.books import Books, DuplicateError, RefusedError
from payment_kit.faults import Faults, Rule, duplicate
from runtime.component_call import AppKey, Verdict, judge, signed_headers

PAYMENT_KIT_DID = "z2qaCNvKMv5GjouKdcDWexv6WqtHbpNPQDnAk"
_WEBHOOK_TRIES = 20


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any]


@dataclass
class Server:
    """An ASGI application."""

    books: Books
    key: AppKey
    faults: Faults = field(default_factory=Faults)
    requests: int = 0
    _deliveries: set[asyncio.Task[None]] = field(default_factory=set)

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Asked(scope["method"], unquote(target), dict(parse_qsl(query)), _document(raw))
        if target.startswith("/control/"):
            await _reply(send, 200, self._control(asked))
            return
        verdict = judge(self.key.public, asked.method, f"{target}?{query}", headers, raw, int(time.time()))
        if verdict is Verdict.UNSIGNED:
            await _reply(send, 400, {"error": "Bad Request"})
        elif verdict is Verdict.WRONG:
            await _reply(send, 401, {"error": "verify sig failed"})
        else:
            self.requests += 1
            await self._serve(asked, send)

    async def _serve(self, asked: Asked, send: Callable[[Any], Any]) -> None:
        rule = self.faults.pick(asked.method, asked.path)
        action = None if rule is None else rule.action
        if rule is not None and action in {"drop", "error", "html", "redirect"}:
            await _fail(send, rule)
            return
        if rule is not None and action == "hang":
            await asyncio.sleep(rule.seconds)
        try:
            status, document = 200, self._answer(asked)
        except RefusedError as error:
            status, document = error.status, {"error": error.text}
        except DuplicateError as error:
            status, document = duplicate(self.faults.duplicate_form, error.event)
        if rule is not None and action == "hang_after":
            await asyncio.sleep(rule.seconds)
        if rule is not None and action in {"lose_reply", "error_after"}:
            await _fail(send, rule)
            return
        await _reply(send, status, _falsified(document) if action == "wrong_amount" else document)

    def _answer(self, asked: Asked) -> Any:
        for method, pattern, serve in _ROUTES:
            match = re.fullmatch(pattern, asked.path)
            if match and method == asked.method:
                return serve(self, asked, *match.groups())
        raise RefusedError(404, f"{asked.method} {asked.path} not found")

    # ---- what is served ---------------------------------------------------------------------------------------------

    def _meter(self, asked: Asked, name: str) -> Any:
        if asked.method == "PUT":
            return self.books.change_meter(name, asked.body)
        return self.books.meter(name)

    def _meter_make(self, asked: Asked) -> Any:
        return self.books.make_meter(asked.body)

    def _setting(self, asked: Asked, name: str) -> Any:
        if asked.method == "PUT":
            return self.books.change_setting(name, asked.body)
        return self.books.setting(name)

    def _setting_make(self, asked: Asked) -> Any:
        return self.books.make_setting(asked.body)

    def _customer(self, asked: Asked, name: str) -> Any:
        if asked.body.get("create") and not name.startswith("cus_"):
            return self.books.make_customer(name)
        return self.books.customer(name)

    def _event_make(self, asked: Asked) -> Any:
        return self.books.make_event(asked.body)

    def _events(self, asked: Asked) -> Any:
        q = asked.query
        customer = self.books.customer(q["customer_id"])["id"]
        found = self.books.events_between(q["event_name"], customer, int(q.get("start", 0)), int(q.get("end", 1 << 60)))
        return _page(found, q)

    def _pending(self, asked: Asked) -> Any:
        customer = self.books.customer(asked.query["customer_id"])["id"]
        amounts = {m["currency_id"]: self.books.pending(customer, m["currency_id"]) for m in self.books.meters.values()}
        return {currency: str(amount) for currency, amount in amounts.items() if amount}

    def _summary(self, asked: Asked) -> Any:
        customer = self.books.customer(asked.query["customer_id"])["id"]
        answer = {}
        for meter in self.books.meters.values():
            total, remaining, count = self.books.balance(customer, meter["currency_id"])
            if total:
                answer[meter["currency_id"]] = {
                    "paymentCurrency": meter["paymentCurrency"],
                    "totalAmount": str(total),
                    "remainingAmount": str(remaining),
                    "grantCount": count,
                }
        return answer

    def _verify(self, asked: Asked) -> Any:
        customer = self.books.customer(asked.query["customer_id"])
        if customer["did"] in self.books.recharging:
            return {"can_continue": True}
        return {"can_continue": False, "reason": "auto_recharge_disabled"}

    def _grants(self, asked: Asked) -> Any:
        q, rows = asked.query, self.books.grants
        if "customer_id" in q:
            customer = self.books.customer(q["customer_id"])["id"]
            rows = [grant for grant in rows if grant["customer_id"] == customer]
        if "currency_id" in q and self.faults.grant_filters:
            rows = [grant for grant in rows if grant["currency_id"] == q["currency_id"]]
        size = min(int(q.get("pageSize", 20)), self.faults.grant_page_max)
        return self.faults.listed(_page(rows, {**q, "pageSize": str(size)}))

    def _grant(self, asked: Asked, grant_id: str) -> Any:
        if asked.method == "PUT":
            self.books.change_grant(grant_id, asked.body)
            return {"success": True}
        return self.books.grant(grant_id)

    def _grant_make(self, asked: Asked) -> Any:
        grant = self.books.make_grant(asked.body)
        self._announce("customer.credit_grant.granted", grant)
        return grant

    def _transactions(self, asked: Asked) -> Any:
        customer = self.books.customer(asked.query["customer_id"])["id"]
        return _page([t for t in self.books.transactions if t["customer_id"] == customer], asked.query)

    def _webhook_make(self, asked: Asked) -> Any:
        return self.books.add_webhook(asked.body)

    def _currency(self, asked: Asked, currency: str) -> Any:
        return self.books.change_currency(currency, asked.body)

    def _currencies(self, _asked: Asked) -> Any:
        return self.books.currencies()

    def _price(self, _asked: Asked, key: str) -> Any:
        return _by_key(self.books.prices, key, "price")

    def _product_make(self, asked: Asked) -> Any:
        return self.books.make_product(asked.body)

    def _link(self, _asked: Asked, key: str) -> Any:
        return _by_key(self.books.links, key, "payment link")

    def _link_make(self, asked: Asked) -> Any:
        return self.books.make_link(asked.body)

    def _recharge(self, asked: Asked, currency: str) -> Any:
        if asked.method == "PUT":
            self.books.set_recharge(currency, asked.body)
        return {"currency_id": currency, "recharge_config": self.books.recharge.get(currency)}

    # ---- webhooks and control ---------------------------------------------------------------------------------------

    def _announce(self, kind: str, thing: dict[str, Any]) -> None:
        for number, webhook in enumerate(self.books.webhooks):
            if kind in webhook.get("enabled_events", ()):
                event = {
                    "id": f"evt_{len(self.books.journal)}_{number}",
                    "type": kind,
                    "livemode": True,
                    "data": {"object": thing},
                    "object_id": thing["id"],
                }
                task = asyncio.create_task(self._deliver(webhook["url"], event))
                self._deliveries.add(task)
                task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, url: str, event: dict[str, Any]) -> None:
        """Again until it is answered with 2xx."""
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
            for attempt in range(_WEBHOOK_TRIES):
                path = httpx2.URL(url).raw_path.decode()
                headers = signed_headers(self.key, PAYMENT_KIT_DID, "POST", path, event, int(time.time()))
                try:
                    if (await client.post(url, json=event, headers=headers)).is_success:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(min(30, 0.2 * 2**attempt))

    def _control(self, asked: Asked) -> Any:
        match (asked.method, asked.path):
            case ("GET", "/control/journal"):
                return self.books.journal
            case ("GET", "/control/health"):
                return {"requests": self.requests}
            case ("GET", "/control/events" | "/control/grants"):
                return self.books.events if asked.path.endswith("events") else self.books.grants
            case ("POST", "/control/faults"):
                self.faults.replace(asked.body.get("rules", []))
            case ("POST", "/control/options"):
                self.faults.duplicate_form = asked.body.get("duplicate_form", self.faults.duplicate_form)
                self.books.dedup_s = asked.body.get("dedup_s", self.books.dedup_s)
            case ("POST", "/control/lose"):
                self.books.lose(asked.body["identifier"])
            case ("POST", "/control/change"):
                self.books.change(asked.body["identifier"], asked.body["value"])
            case ("POST", "/control/meter"):
                self.books.make_meter(asked.body)
            case ("POST", "/control/recharge"):
                self.books.recharging.add(asked.body["did"])
            case ("POST", "/control/grant"):
                customer = self.books.make_customer(asked.body["did"])
                meter = self.books.meter(asked.body.pop("meter", next(iter(self.books.meters))))
                wanted = {"currency_id": meter["currency_id"], "name": "by a test", "category": "paid"}
                grant = self.books.make_grant({**wanted, **asked.body, "customer_id": customer["id"]})
                self._announce("customer.credit_grant.granted", grant)
                return grant
        return self.faults.told()


_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("POST", r"/api/meter-events", Server._event_make),
    ("GET", r"/api/meter-events", Server._events),
    ("GET", r"/api/meter-events/pending-amount", Server._pending),
    ("GET", r"/api/credit-grants/summary", Server._summary),
    ("GET", r"/api/credit-grants/verify-availability", Server._verify),
    ("GET", r"/api/credit-grants", Server._grants),
    ("POST", r"/api/credit-grants", Server._grant_make),
    ("GET", r"/api/credit-grants/([^/]+)", Server._grant),
    ("PUT", r"/api/credit-grants/([^/]+)", Server._grant),
    ("GET", r"/api/settings/([^/]+)", Server._setting),
    ("PUT", r"/api/settings/([^/]+)", Server._setting),
    ("POST", r"/api/settings", Server._setting_make),
    ("PUT", r"/api/payment-currencies/([^/]+)", Server._currency),
    ("GET", r"/api/credit-transactions", Server._transactions),
    ("GET", r"/api/customers/([^/]+)", Server._customer),
    ("POST", r"/api/meters", Server._meter_make),
    ("GET", r"/api/meters/([^/]+)", Server._meter),
    ("PUT", r"/api/meters/([^/]+)", Server._meter),
    ("POST", r"/api/webhook-endpoints", Server._webhook_make),
    ("GET", r"/api/payment-currencies", Server._currencies),
    ("GET", r"/api/payment-currencies/([^/]+)/recharge-config", Server._recharge),
    ("PUT", r"/api/payment-currencies/([^/]+)/recharge-config", Server._recharge),
    ("GET", r"/api/prices/([^/]+)", Server._price),
    ("POST", r"/api/products", Server._product_make),
    ("GET", r"/api/payment-links/([^/]+)", Server._link),
    ("POST", r"/api/payment-links", Server._link_make),
)


def _document(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _by_key(things: dict[str, dict[str, Any]], key: str, what: str) -> dict[str, Any]:
    """By lookup key or id."""
    for name, thing in things.items():
        if key in {name, thing["id"]}:
            return thing
    raise RefusedError(404, f"{what} not found")


def _page(rows: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    page, size = int(query.get("page", 1)), min(int(query.get("pageSize", 20)), 100)
    return {
        "list": rows[(page - 1) * size : page * size],
        "count": len(rows),
        "paging": {"page": page, "pageSize": size},
    }


def _falsified(document: Any) -> Any:
    """The same answer with other amounts: a value that is not ours, a balance that is no amount."""
    text = json.dumps(document)
    text = re.sub(r'"value": "[^"]*"', '"value": "999"', text)
    return json.loads(re.sub(r'"remainingAmount": "[^"]*"', '"remainingAmount": "12.5"', text))


async def _fail(send: Callable[[Any], Any], rule: Rule) -> None:
    match rule.action:
        case "html":
            await _send(send, 200, b"<!doctype html><title>Sign in</title>", ("content-type", "text/html"))
        case "redirect":
            await _send(send, 302, b"", ("location", "/elsewhere"))
        case "error" | "error_after":
            extra = () if rule.retry_after is None else (("retry-after", str(rule.retry_after)),)
            await _send(
                send, rule.status, b'{"error":"as a test wants it"}', ("content-type", "application/json"), *extra
            )
        case _:  # an answer that is shorter than it said: the server hangs up
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"{"})


async def _reply(send: Callable[[Any], Any], status: int, document: Any) -> None:
    await _send(send, status, json.dumps(document, ensure_ascii=False).encode(), ("content-type", "application/json"))


async def _send(send: Callable[[Any], Any], status: int, body: bytes, *headers: tuple[str, str]) -> None:
    listed = [(name.encode(), value.encode()) for name, value in (*headers, ("content-length", str(len(body))))]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
