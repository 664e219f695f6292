"""The Payment Kit of the tests, inside the test's process or in one of its own."""

import asyncio
import functools
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx2
import uvicorn
from payment_kit.books import PLACES, Books
from payment_kit.server import Server

from hub_local.programs import Program, http_status
from runtime.component_call import AppKey

KEY: Final = (
    "0x222b1539c9e1953225728e6493b7a5563e579cf8d4f16b6b3015de7e04f0f55e"
    "d1ca25c9763ff39c428819a8c790b87ef9d3dc8060166feb624e35865bdafa9b"
)
"""Of the vectors: a throw-away."""
QUICK: Final = {
    "HUB_PAYMENT_KIT_APP_KEY": KEY,
    "HUB_PAYMENT_KIT_TIMEOUT_S": "1",
    "HUB_PAYMENT_KIT_SERVER_S": "0.2",
    "HUB_PAYMENT_KIT_BACKOFF_MAX_S": "0.3",
    "HUB_PAYMENT_KIT_REFRESH_S": "1",
}
"""Waits that suit a test."""
_TESTS: Final = Path(__file__).parents[1]


def total(events: list[dict[str, Any]]) -> Decimal:
    """Sum of the values of meter events."""
    return sum((Decimal(event["payload"]["value"]) for event in events), Decimal(0))


class LocalKit:
    """A server in this process: its books and faults lie open."""

    def __init__(self, books: Books) -> None:
        self.server = Server(books, AppKey.read(KEY))
        self.port = _free_port()
        self._uvicorn: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def books(self) -> Books:
        """What it knows."""
        return self.server.books

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, action: str, **rule: Any) -> None:
        """One fault, the only one from now on."""
        self.server.faults.replace([{"action": action, **rule}])

    def heal(self) -> None:
        """No more faults."""
        self.server.faults.replace([])

    def give(self, account: str, amount: str, **fields: Any) -> dict[str, Any]:
        """A grant at Payment Kit, made by somebody else than the hub; makes meter and customer if need be."""
        if not self.books.meters:
            self.books.make_meter({"event_name": "agent-hub-ai-meter-v2", "unit": "USD"})
        customer = self.books.make_customer(account.removeprefix("did:abt:"))["id"]
        currency = next(iter(self.books.meters.values()))["currency_id"]
        return self.books.make_grant({"customer_id": customer, "currency_id": currency, "amount": amount, **fields})

    def left(self, account: str) -> Decimal:
        """Balance minus what is pending, in credits."""
        customer = self.books.customer(account.removeprefix("did:abt:"))["id"]
        currency = next(iter(self.books.meters.values()))["currency_id"]
        _, remaining, _ = self.books.balance(customer, currency)
        return Decimal(remaining - self.books.pending(customer, currency)).scaleb(-PLACES)

    async def start(self) -> None:
        """Serve on the port, always the same."""
        config = uvicorn.Config(
            self.server,
            port=self.port, lifespan="off", log_config=None, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._uvicorn._serve())
        while not self._uvicorn.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Serve no more; the books stay."""
        if self._uvicorn is not None and self._serving is not None:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
            await self._serving
            self._uvicorn = None


@asynccontextmanager
async def served() -> AsyncIterator[LocalKit]:
    """A running one."""
    kit = LocalKit(Books())
    await kit.start()
    yield kit
    await kit.stop()


class KitProcess:
    """A server in a process of its own, asked over HTTP."""

    def __init__(self, journal: Path) -> None:
        self.port = _free_port()
        self.program = Program(
            name="payment-kit",
            command=(sys.executable, "-m", "payment_kit", "--port", str(self.port), "--journal", str(journal)),
            env={"PYTHONPATH": str(_TESTS), "HUB_PAYMENT_KIT_APP_KEY": KEY},
            ready=functools.partial(self._is_ready),
        )

    @property
    def env(self) -> dict[str, str]:
        """Settings of a hub that uses it."""
        return {**QUICK, "HUB_PAYMENT_KIT_URL": f"http://127.0.0.1:{self.port}"}

    async def control(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask or tell it something."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{self.port}/control/{path}"
            answer = await (client.get(url) if body is None else client.post(url, json=body))
            return answer.raise_for_status().json()

    async def events(self) -> list[dict[str, Any]]:
        """All meter events that were applied."""
        found: list[dict[str, Any]] = await self.control("events")
        return found

    async def fail(self, *rules: dict[str, Any]) -> None:
        """These faults and no others."""
        await self.control("faults", {"rules": list(rules)})

    async def hits(self) -> dict[str, int]:
        """How often each fault has befallen a request since faults were set."""
        told = await self.control("told", {})
        hits: dict[str, int] = told["hits"]
        return hits

    async def _is_ready(self) -> bool:
        return await http_status(self.port, "/control/health") == 200


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
