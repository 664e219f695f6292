"""The hub of the journeys, its providers, and the people who call it."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
from rig.hub import Hub, started
from rig.provider import FakeProvider
from rig.waiting import until

from contracts.permissions import GATEWAY, ROUTER
from contracts.rpc import catalog, identity, metering, rate_changes
from runtime import rpc
from runtime.bus import Bus

MOUNTS = ("/v1", "/api/v2")
"""Where OpenAI's API stands."""
POOLS = 24
"""Pairs of providers that list one bare name; a test takes its own, so that no cool-down is left from another."""
CLAUDE = "anthropic/claude-sonnet-4-5"
SECRET = "sk-the-hubs-own-key-at-the-provider-0123456789"
LATE_S = 2.0
"""The hub's patience with a provider and with a client's body, in these tests."""


class Standing(NamedTuple):
    """What the books say of one account."""

    held: Decimal
    spent: Decimal
    calls: int


@dataclass(frozen=True)
class Caller:
    """Somebody with a key and an account."""

    system: "System"
    key: str
    key_id: str
    account: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def post(
        self, body: bytes | Mapping[str, Any], *, path: str = "/v1/chat/completions", **headers: str
    ) -> httpx2.Response:
        """A chat request, whole; underscores in header names become hyphens."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"content-type": "application/json", **self.headers, **named}
        return await self.system.http.post(path, content=content, headers=sent)

    async def get(self, path: str, **query: str) -> httpx2.Response:
        return await self.system.http.get(path, params=query, headers=self.headers)

    async def call(self, call_id: str) -> dict[str, Any]:
        """What `GET /api/v2/calls/{id}` says."""
        response = await self.get(f"/api/v2/calls/{call_id}")
        assert response.status_code == 200, response.text
        view: dict[str, Any] = response.json()
        return view

    async def closed(self, call_id: str, within_s: float = 20.0) -> dict[str, Any]:
        """The call, once it is in the books."""

        async def look() -> dict[str, Any] | None:
            view = await self.call(call_id)
            return view if view["state"] != "processing" else None

        view = await until(look, within_s=within_s, what=f"call {call_id} is settled")
        assert view is not None
        return view

    async def standing(self) -> Standing:
        """Straight from the tables."""
        rows = await self.system.hub.fetch(
            "select held, spent, (select count(*) from metering.model_call c where c.account = a.id) "
            "from metering.account a where id = $1",
            self.account,
        )
        return Standing(*rows[0]) if rows else Standing(Decimal(0), Decimal(0), 0)

    async def released(self, within_s: float = 20.0) -> Standing:
        """The standing, once nothing is held."""

        async def look() -> Standing | None:
            now = await self.standing()
            return now if now.held == 0 else None

        standing = await until(look, within_s=within_s, what="every hold is released")
        assert standing is not None
        return standing


@dataclass(frozen=True)
class System:
    """A running hub with fake providers behind it."""

    hub: Hub
    openai: FakeProvider
    anthropic: FakeProvider
    first: FakeProvider
    second: FakeProvider
    bus: Bus
    """As an operator."""
    http: httpx2.AsyncClient
    _pools: Iterator[int] = field(default_factory=lambda: iter(range(POOLS)))

    def pooled_model(self) -> str:
        """A bare name that `first` and `second` serve, under provider names that nobody has used yet."""
        return f"pooled-{next(self._pools)}"

    @property
    def providers(self) -> tuple[FakeProvider, ...]:
        return self.openai, self.anthropic, self.first, self.second

    async def caller(self, credit: str = "100") -> Caller:
        """Somebody new, with this much credit."""
        made = await rpc.ask(
            self.bus, identity.SERVICE, identity.KEY_CREATE, identity.KeyCreate(name="journey"), identity.KeyCreated
        )
        if Decimal(credit):
            await self.grant(made.account, credit)
        return Caller(self, made.key, made.key_id, made.account)

    async def grant(self, account: str, credit: str) -> None:
        """Give credits."""
        grant = metering.Grant(grant_id=str(uuid4()), account=account, amount=Decimal(credit))
        await rpc.ask(self.bus, metering.SERVICE, metering.GRANT, grant, metering.Balance)

    async def set_rate(self, pattern: str, rate_in: str, rate_out: str, **more: str) -> None:
        """Put a price in force, and wait until every gateway knows it."""
        request = rate_changes.RatesSet(pattern=pattern, input=rate_in, output=rate_out, **more)  # type: ignore[arg-type]
        await rpc.ask(self.bus, catalog.SERVICE, rate_changes.RATES_SET, request, catalog.RateView)


def environment(
    openai: FakeProvider, anthropic: FakeProvider, first: FakeProvider, second: FakeProvider
) -> dict[str, str]:
    """Settings under which the hub knows these providers."""
    env = {
        "OPENAI_API_KEY": SECRET,
        "OPENAI_BASE_URL": openai.url,
        "ANTHROPIC_API_KEY": SECRET,
        "ANTHROPIC_BASE_URL": anthropic.url,
        "HUB_DEFAULT_MODEL": "demo/echo",
        "HUB_UPSTREAM_FIRST_BYTE_S": str(LATE_S),
        "HUB_UPSTREAM_IDLE_S": str(LATE_S),
        "HUB_BODY_TIMEOUT_S": str(LATE_S),
        "HUB_HEADER_TIMEOUT_S": str(LATE_S),
    }
    for number in range(POOLS):
        env |= first.env(f"first{number}", models=f"pooled-{number}", key=SECRET)
        env |= second.env(f"second{number}", models=f"pooled-{number}", key=SECRET)
    return env


@asynccontextmanager
async def running(
    root: Path, template: Path | None, *, env: Mapping[str, str] | None = None, counts: Mapping[str, int] | None = None
) -> AsyncIterator[System]:
    """A hub with two gateways, two routers and four providers, all priced."""
    async with AsyncExitStack() as stack:
        openai, anthropic, first, second = [await FakeProvider().start() for _ in range(4)]
        for provider in (openai, anthropic, first, second):
            stack.push_async_callback(provider.close)
        known = environment(openai, anthropic, first, second)
        hub = await started(
            root, template, counts={GATEWAY: 2, ROUTER: 2} if counts is None else counts, env={**known, **(env or {})}
        )
        stack.push_async_callback(hub.close)
        bus = await hub.connect()
        stack.push_async_callback(bus.close)
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=hub.url, timeout=30, trust_env=False))
        system = System(hub, openai, anthropic, first, second, bus, http)
        for pattern in ("openai/gpt-4o", CLAUDE, "*/pooled-*"):
            await system.set_rate(pattern, "0.001", "0.002")
        await _priced(system, "0" if (env or {}).get("HUB_BILLING") == "off" else "0.001")
        yield system


async def _priced(system: System, rate_in: str) -> None:
    """Wait until the gateway serves these prices."""
    caller = await system.caller("0")

    async def look() -> bool:
        model = (await caller.get("/v1/models/second0/pooled-0")).json()
        return model.get("input_credits_per_token") == rate_in

    await until(look, what="the gateway knows the prices")
