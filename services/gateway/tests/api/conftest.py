"""The FastAPI surface behind uvicorn, on a real bus; metering and provider-router are played by stand-ins on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

import httpx2
import pytest
import uvicorn

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id
from contracts.rpc import catalog, metering, model_calls, rate_changes
from contracts.rpc.identity import KeyCreate, KeyCreated, Role
from gateway import rpc
from gateway.admission.prices import Prices
from gateway.api.application import build
from gateway.api.services import Services
from gateway.http_protocol import Limits, limited
from gateway.identity import store
from gateway.kept import KeptAnswers
from runtime.rpc import answer, broker

SNAPSHOT = catalog.Snapshot(
    revision=1,
    providers=(
        catalog.ProviderView(name="openai", kind="openai", models=("gpt-4o", "unpriced")),
        catalog.ProviderView(name="demo", kind="demo", models=("echo",)),
    ),
    rates=(
        catalog.RateView(
            rate_id="r1",
            pattern="openai/gpt-4o",
            input="0.0000025",
            output="1E-5",
            source="test",
            effective_at="2026-11-01T00:00:00Z",
            about=catalog.About(description="For all and sundry", max_tokens=128_000, features=("tools",)),
        ),
        catalog.RateView(
            rate_id="r2",
            pattern="demo/*",
            input="0.1",
            output="0.1",
            source="demo",
            effective_at="2026-11-01T00:00:00Z",
        ),
    ),
)


@dataclass
class Books:
    """What the stand-in for metering knows, and what it was asked."""

    balances: dict[str, Decimal] = field(default_factory=dict)
    calls: dict[str, model_calls.CallView] = field(default_factory=dict)
    grants: list[metering.Grant] = field(default_factory=list)
    opened: list[metering.AccountsOpen] = field(default_factory=list)
    rates: list[rate_changes.RatesSet] = field(default_factory=list)

    async def set_rates(self, asked: rate_changes.RatesSet) -> catalog.RateView:
        if asked.expected_version != len(self.rates):
            raise HubError(ErrorCode.CONFLICT, "Changed meanwhile.", param="expected_version")
        self.rates.append(asked)
        return SNAPSHOT.rates[0]

    async def list_rates(self, asked: rate_changes.RatesList) -> rate_changes.RatesPage:
        return rate_changes.RatesPage(
            rates=tuple(rate for rate in SNAPSHOT.rates if (asked.pattern or "") in rate.pattern)
        )

    async def balance(self, asked: metering.BalanceGet) -> metering.Balance:
        zero = Decimal(0)
        free = self.balances.get(asked.account)
        if free is None:
            return metering.Balance(account=asked.account, granted=zero, spent=zero, held=zero, available=zero)
        return metering.Balance(account=asked.account, granted=free + 1, spent=zero, held=Decimal(1), available=free)

    async def call(self, asked: model_calls.CallGet) -> model_calls.CallView:
        view = self.calls.get(asked.call_id)
        if view is None or asked.account not in {None, view.account}:
            raise HubError(ErrorCode.NOT_FOUND, "There is no such call.")
        return view

    async def grant(self, asked: metering.Grant) -> metering.Balance:
        self.grants.append(asked)
        self.balances[asked.account] = asked.amount
        return await self.balance(metering.BalanceGet(account=asked.account))

    async def open(self, asked: metering.AccountsOpen) -> metering.AccountsOpened:
        self.opened.append(asked)
        return metering.AccountsOpened(opened=len(asked.accounts))


@dataclass
class Surface:
    """The running surface."""

    node: Any
    http: httpx2.AsyncClient
    books: Books
    prices: Prices
    peers: rpc.Peers
    ready: dict[str, bool]

    async def key(self, role: Role = "member") -> KeyCreated:
        made: KeyCreated = await self.node.keys.create(KeyCreate(role=role), "test")
        return made

    async def get(self, path: str, key: KeyCreated | None = None, **headers: str) -> httpx2.Response:
        if key is not None:
            headers["authorization"] = f"Bearer {key.key}"
        return await self.http.get(path, headers=headers)


async def _snapshot(_: catalog.SnapshotGet) -> catalog.Snapshot:
    return SNAPSHOT


@pytest.fixture
async def books(nats_url: Callable[[str], str], stack: AsyncExitStack) -> Books:
    """Metering's and provider-router's part of the bus, played."""
    books = Books()
    for user in (permissions.METERING, permissions.ROUTER):
        process = new_process_id(user)
        on = broker(nats_url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))
        if user == permissions.METERING:
            service = metering.SERVICE
            answer(on, service, metering.BALANCE, metering.BalanceGet, metering.Balance, books.balance)
            answer(on, service, model_calls.CALL_GET, model_calls.CallGet, model_calls.CallView, books.call)
            answer(on, service, metering.GRANT, metering.Grant, metering.Balance, books.grant)
            answer(on, service, metering.ACCOUNTS_OPEN, metering.AccountsOpen, metering.AccountsOpened, books.open)
        else:
            answer(on, catalog.SERVICE, catalog.SNAPSHOT, catalog.SnapshotGet, catalog.Snapshot, _snapshot)
            answer(
                on, catalog.SERVICE, rate_changes.RATES_SET, rate_changes.RatesSet, catalog.RateView, books.set_rates
            )
            answer(
                on,
                catalog.SERVICE,
                rate_changes.RATES_LIST,
                rate_changes.RatesList,
                rate_changes.RatesPage,
                books.list_rates,
            )
        await on.start()
        stack.push_async_callback(on.stop)
    return books


@pytest.fixture(params=[""])
def mount_path(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


@pytest.fixture
async def surface(
    start_node: Callable[[], Awaitable[Any]], books: Books, mount_path: str, stack: AsyncExitStack
) -> AsyncIterator[Surface]:
    node = await start_node()
    peers = rpc.Peers(node.bus, Decimal(100))
    prices = Prices(peers.snapshot, billing="credit", unpriced="refuse")
    await prices.refresh()
    ready = {"nats": True, "postgres": True}

    async def is_ready() -> dict[str, bool]:
        return ready

    kept = KeptAnswers(node.bus, new_process_id("gateway"), peers.outcomes, settle_s=0.5, call_s=20.0)
    await kept.start()
    full_name = partial(store.full_name, node.pool)
    services = Services(node.principals, prices, peers, full_name, is_ready, True, kept, lambda: None)
    config = uvicorn.Config(
        build(services, mount_path),
        host="127.0.0.1",
        port=0,
        http=limited(Limits()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        yield Surface(node, http, books, prices, peers, ready)
    server.should_exit = True
    await task
