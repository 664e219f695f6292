"""What the tests of metering share: its neighbours on the bus, and the books."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import asyncpg
import msgspec
from pydantic import BaseModel
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until

from contracts import permissions, streams, subjects
from contracts.cloudevent import UsageEvent
from contracts.events import Attempt, CallCompleted, CallFailed
from contracts.ids import new_call_id, new_process_id
from contracts.rpc import metering as questions
from contracts.rpc.metering import ReserveBatch, ReserveCall, ReserveReply, SettledBatch, SettledCall
from contracts.subjects import CallKind
from contracts.usage import Candidate, Rates, Usage
from metering.app import metering
from metering.settings import Settings
from runtime import rpc
from runtime.bus import Bus, opened
from runtime.provision import provision

A = TypeVar("A", bound=BaseModel)
RATES = Rates(input="0.001", output="0.002")
CANDIDATE = Candidate("demo", "echo", RATES, "r1")


async def connected(servers: EmbeddedServers | DockerServers, user: str) -> Bus:
    process = new_process_id(user)
    return await opened(
        servers.credentials.nats_url(user, servers.ports.nats),
        name=process,
        inbox_prefix=subjects.inbox_prefix(user, process),
    )


def call(account: str = "did:a", hold: str = "1", **changes: Any) -> ReserveCall:
    values: dict[str, Any] = {
        "call_id": new_call_id(),
        "account": account,
        "hold": hold,
        "kind": "chat",
        "dialect": "openai",
        "model": "demo/echo",
        "stream": False,
        "candidates": (CANDIDATE,),
        "ttl_s": 600.0,
        "user": "did:user",
        "project": "did:project",
        "key_id": "did:key",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "request_id": "req-1",
    }
    return ReserveCall(**(values | changes))


@dataclass
class Neighbours:
    infra: EmbeddedServers | DockerServers
    settings: Settings
    books: "asyncpg.Connection[asyncpg.Record]"
    stack: AsyncExitStack
    gateway_id: str = field(default_factory=lambda: new_process_id("gateway"))
    router_id: str = field(default_factory=lambda: new_process_id("provider-router"))
    settled: dict[str, list[SettledCall]] = field(default_factory=dict)
    """What the gateway was told, by call."""
    router_settled: dict[str, list[SettledCall]] = field(default_factory=dict)
    events: list[UsageEvent] = field(default_factory=list)
    processes: list[AsyncExitStack] = field(default_factory=list)

    async def connect(self) -> None:
        self.gateway = await self._open(permissions.GATEWAY, self.gateway_id)
        self.router = await self._open(permissions.ROUTER, self.router_id)
        self.operator = await self._open(permissions.OPERATOR, new_process_id("operator"))
        await self.gateway.listen(subjects.inbox_settled("gateway", self.gateway_id), self._note(self.settled))
        await self.router.listen(
            subjects.inbox_settled("provider-router", self.router_id), self._note(self.router_settled)
        )
        await self.operator.listen(f"{subjects.USAGE_RECORDED}.*", self._note_event)
        await asyncio.gather(*(bus.flush() for bus in (self.gateway, self.router, self.operator)))

    async def start_metering(self, **changes: Any) -> None:
        """One more metering in this process."""
        settings = self.settings.model_copy(update=changes)
        stack = AsyncExitStack()
        await stack.enter_async_context(metering(settings, new_process_id("metering")))
        self.processes.append(stack)
        self.stack.push_async_callback(stack.aclose)

    async def stop_metering(self) -> None:
        """All of them, as SIGTERM does it."""
        for process in self.processes:
            await process.aclose()
        self.processes.clear()

    async def restart_metering(self, **changes: Any) -> None:
        await self.stop_metering()
        await self.start_metering(**changes)

    # ---- what gateways and routers do -------------------------------------------------------------------------------

    async def reserve_batch(self, *calls: ReserveCall) -> list[str]:
        reply = await self.raw_reserve(msgspec.json.encode(ReserveBatch(calls)))
        return [result.status for result in reply.results]

    async def raw_reserve(self, payload: bytes) -> ReserveReply:
        subject = subjects.rpc(questions.SERVICE, questions.RESERVE)
        return msgspec.json.decode(await self.gateway.call(subject, payload, 10), type=ReserveReply)

    def completed(self, reserved: ReserveCall, input_tokens: int = 100, **changes: Any) -> CallCompleted:
        values: dict[str, Any] = {
            "call_id": reserved.call_id,
            "epoch": 1,
            "account": reserved.account,
            "kind": "chat",
            "outcome": "stop",
            "candidate": CANDIDATE,
            "usage": Usage(input_tokens=input_tokens, output_tokens=50),
            "attempts": (Attempt(1, "demo", "echo", "main", 200, "", 0, 120, 30),),
            "duration_ms": 1234,
            "first_byte_ms": 40,
            "completed_at": "2026-11-25T09:30:00.000Z",
            "gateway": self.gateway_id,
            "router": self.router_id,
            "provider_first_byte_ms": 30,
            "trace_id": reserved.trace_id,
        }
        return CallCompleted(**(values | changes))

    def failed(self, reserved: ReserveCall, **changes: Any) -> CallFailed:
        values: dict[str, Any] = {
            "call_id": reserved.call_id,
            "epoch": 1,
            "account": reserved.account,
            "kind": "chat",
            "code": "upstream_broken",
            "reason": "The stream ended early.",
            "failed_at": "2026-11-25T09:30:00.000Z",
            "gateway": self.gateway_id,
            "router": self.router_id,
        }
        return CallFailed(**(values | changes))

    async def publish(self, *facts: CallCompleted | CallFailed) -> None:
        """Each under a message id of its own, so that repeats reach metering."""
        await asyncio.gather(*(self.publish_raw(_subject(fact), msgspec.json.encode(fact)) for fact in facts))

    async def publish_raw(self, subject: str, payload: bytes) -> None:
        answer = await self.router.call(subject, payload, 5)
        assert b'"error"' not in answer, answer

    async def ask(self, method: str, request: BaseModel, reply: type[A]) -> A:
        return await rpc.ask(self.operator, questions.SERVICE, method, request, reply)

    async def open_account(self, account: str, amount: str) -> None:
        word = await self.books.fetchval(
            "select metering.credit_give(gen_random_uuid(), $1, $2, 'top_up', '', '', '', 50, null, null, null, now())",
            account,
            Decimal(amount),
        )
        assert word == "done"

    async def until_router_told(self, *reserved: ReserveCall) -> None:
        """Routers hear of it a moment after gateways."""

        async def told() -> bool:
            return all(call.call_id in self.router_settled for call in reserved)

        await until(told, what="the router was told of every call")

    async def until_settled(self, *reserved: ReserveCall, timeout_s: float = 20.0) -> None:
        async def told() -> bool:
            return all(call.call_id in self.settled for call in reserved)

        await until(told, within_s=timeout_s, what="every call was told to be settled")

    async def until_drained(self) -> None:
        """Every fact is acknowledged or parked."""
        provisioner = await self._open(permissions.PROVISIONER, new_process_id("provisioner"))
        js = provisioner.jetstream()

        async def nothing_left() -> bool:
            info = await js.consumer_info(streams.SETTLE.stream, streams.SETTLE.durable)
            return not info.num_pending and not info.num_ack_pending

        await until(nothing_left, within_s=40, what="the settle consumer is empty")

    async def empty_usage_stream(self) -> None:
        """With its window of known message ids."""
        provisioner = await self._open(permissions.PROVISIONER, new_process_id("provisioner"))
        js = provisioner.jetstream()
        await js.delete_stream(streams.USAGE.name)
        await provision(js)

    # ---- the books --------------------------------------------------------------------------------------------------

    async def account(self, account: str) -> asyncpg.Record:
        row = await self.books.fetchrow("select * from metering.account where id = $1", account)
        assert row is not None
        return row

    async def row(self, call_id: str) -> asyncpg.Record:
        row = await self.books.fetchrow("select * from metering.model_call where id = $1", call_id)
        assert row is not None
        return row

    async def assert_balanced(self) -> None:
        """spent = Σ ledger = Σ credits, held = Σ holds of processing, sequences contiguous; per account."""
        rows = await self.books.fetch(
            """
            select a.id, a.held, a.spent, a.seq,
                (select coalesce(sum(hold), 0) from metering.model_call c
                 where c.account = a.id and state = 'processing') as holds,
                (select coalesce(sum(credits), 0) from metering.model_call c where c.account = a.id) as credits,
                (select coalesce(sum(amount), 0) from metering.ledger l where l.account = a.id) as ledger,
                (select coalesce(array_agg(acct_seq order by acct_seq), '{}') from metering.ledger l
                 where l.account = a.id) as sequences
            from metering.account a
            """
        )
        assert rows
        for row in rows:
            assert row["spent"] == row["ledger"] == row["credits"], row
            assert row["held"] == row["holds"], row
            assert row["sequences"] == list(range(1, row["seq"] + 1)), row

    async def _open(self, user: str, process: str) -> Bus:
        servers = self.infra
        bus = await opened(
            servers.credentials.nats_url(user, servers.ports.nats),
            name=process,
            inbox_prefix=subjects.inbox_prefix(user, process),
        )
        self.stack.push_async_callback(bus.close)
        return bus

    def _note(self, told: dict[str, list[SettledCall]]) -> Any:
        def note(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
            for settled in msgspec.json.decode(payload, type=SettledBatch).calls:
                told.setdefault(settled.call_id, []).append(settled)

        return note

    def _note_event(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        self.events.append(msgspec.json.decode(payload, type=UsageEvent))


def _subject(fact: CallCompleted | CallFailed) -> str:
    if isinstance(fact, CallCompleted):
        return subjects.calls_completed(CallKind.CHAT)
    return subjects.calls_failed(CallKind.CHAT)
