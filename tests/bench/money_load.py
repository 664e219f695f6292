"""The gateway and the router of `make bench-money`: reserves and completions on the bus, as they make them, no more.

Reserves of one turn of the loop leave as one message; a completion leaves as soon as its call is admitted.
"""

import argparse
import asyncio
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
import uvloop

from bench.money_messages import Messages, input_tokens
from bench.money_results import Notes, now
from bench.ticker import Ticker
from contracts import subjects
from contracts.events import CallState, completed_message_id
from contracts.ids import new_call_id, new_process_id
from contracts.rpc import metering
from runtime.bus import Bus, header_block, no_responders, opened

BATCH_MAX: Final = 256
"""Calls of one reserve message, as a gateway has them."""
WINDOW_OPENS: Final = "window opens"
WINDOW_CLOSES: Final = "window closes"
RESERVED: Final = "reserved"
QUEUED: Final = "queued"
_RESERVE: Final = subjects.rpc(metering.SERVICE, metering.RESERVE)
_RENEW: Final = subjects.rpc(metering.SERVICE, metering.RENEW)
_COMPLETED: Final = subjects.calls_completed(subjects.CallKind.CHAT)
_REPLY: Final = msgspec.json.Decoder(metering.ReserveReply)
_SETTLED: Final = msgspec.json.Decoder(metering.SettledBatch)
_RESERVE_S: Final = 10.0
_DRAIN_S: Final = 30.0
_OPEN_BATCHES: Final = 8
_PUBLISHED_AT_ONCE: Final = 1000
_RENEW_EVERY_S: Final = 5.0
_RENEWED_AT_ONCE: Final = 5000
"""Open calls of one router: a backlog of 100,000 belongs to many of them."""
_BACKLOG_S: Final = 300.0


class Call(msgspec.Struct, gc=False):
    """One call under way."""

    account: str
    tokens: int
    due_at: float
    hot: bool


@dataclass
class Neighbours:
    """One gateway and one router; `on_settled` hears of every notice with the number of calls in it."""

    gateway: Bus
    router: Bus
    messages: Messages
    names: tuple[str, str]
    notes: Notes = field(default_factory=Notes)
    open: dict[str, Call] = field(default_factory=dict)
    publishes: bool = True
    """Whether completions leave at once."""
    on_settled: Callable[[int], None] = lambda _number: None
    on_reserved: Callable[[int], None] = lambda _number: None
    _waiting: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    async def connected(cls, gateway_url: str, router_url: str) -> "Neighbours":
        """Both on the bus, hearing of what is settled."""
        gateway, router = new_process_id("gateway"), new_process_id("provider-router")
        inboxes = subjects.inbox_prefix("gateway", gateway), subjects.inbox_prefix("provider-router", router)
        made = cls(
            await opened(gateway_url, name=gateway, inbox_prefix=inboxes[0]),
            await opened(router_url, name=router, inbox_prefix=inboxes[1]),
            Messages(gateway, router),
            (gateway, router),
        )
        await made.gateway.listen(subjects.inbox_settled("gateway", gateway), made._settled)
        await made.router.listen(subjects.inbox_settled("provider-router", router), lambda *_: None)
        await asyncio.gather(made.gateway.flush(), made.router.flush())
        return made

    def start(self, account: str, due_at: float, *, hot: bool = False) -> None:
        """Begin a call; its reserve leaves at the end of this turn of the loop."""
        call_id = new_call_id()
        self.open[call_id] = Call(account, input_tokens(self.notes.started), due_at, hot)
        self.notes.started += 1
        self._waiting.append((call_id, account))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._ask)

    def publish(self, call_id: str, call: Call) -> None:
        """The router's word that a call is complete."""
        headers = header_block(Nats_Msg_Id=completed_message_id(call_id, 1))
        self.router.send(_COMPLETED, self.messages.completed(call_id, call.account, call.tokens), headers=headers)

    async def renew(self) -> None:
        """Keep the leases of everything open, as routers do."""
        calls = [(call_id, 1) for call_id in self.open]
        for start in range(0, len(calls), _RENEWED_AT_ONCE):
            request = metering.RenewLeases(self.names[1], tuple(calls[start : start + _RENEWED_AT_ONCE]))
            self.router.ask(_RENEW, msgspec.json.encode(request), lambda _reply, _headers: None, 2.0)
            await asyncio.sleep(0)

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), BATCH_MAX):
            self._ask_batch(waiting[start : start + BATCH_MAX])

    def _ask_batch(self, calls: list[tuple[str, str]]) -> None:
        def replied(reply: bytes | None, headers: bytes | None) -> None:
            if reply is None or no_responders(headers):
                self._lose(calls, "reserve: no answer")
                return
            self._reserved(calls, _REPLY.decode(reply).results)

        self.gateway.ask(_RESERVE, self.messages.reserve_batch(calls), replied, _RESERVE_S)

    def _reserved(self, calls: list[tuple[str, str]], results: Sequence[metering.ReserveResult]) -> None:
        at = now()
        for (call_id, account), result in zip(calls, results, strict=True):
            if result.status != metering.ReserveStatus.RESERVED:
                self._lose([(call_id, account)], f"reserve: {result.status}")
                continue
            call = self.open[call_id]
            self.notes.reserved(call.due_at, at, hot=call.hot)
            if self.publishes:
                self.publish(call_id, call)
        self.on_reserved(len(calls))

    def _lose(self, calls: list[tuple[str, str]], why: str) -> None:
        self.notes.wrong[why] += len(calls)
        for call_id, _ in calls:
            del self.open[call_id]
        self.on_settled(len(calls))

    def _settled(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        at, ended = now(), 0
        for told in _SETTLED.decode(payload).calls:
            call = self.open.pop(told.call_id, None)
            if call is None:
                self.notes.repeated += 1
                continue
            ended += 1
            if told.state == CallState.SUCCESS:
                self.notes.settled(call.account, call.tokens, call.due_at, at, hot=call.hot)
            else:
                self.notes.wrong[f"settled: {told.state or 'parked'}"] += 1
        self.on_settled(ended)


@dataclass(frozen=True)
class Load:
    """One run, as the command line has it."""

    accounts: Sequence[str]
    clients: int
    rate_per_s: float
    hot_share: float
    calls: int
    seconds: float
    warmup_s: float

    def payer(self, number: int) -> tuple[str, bool]:
        """Account of the call of a number, and whether it is the hot one, the first; all others take turns."""
        if self.hot_share and int((number + 1) * self.hot_share) > int(number * self.hot_share):
            return self.accounts[0], True
        others = self.accounts[1:] if self.hot_share else self.accounts
        return others[number % len(others)], False


async def closed(here: Neighbours, load: Load) -> None:
    """Each client begins the next call once its last one is settled."""
    going = True

    def next_ones(number: int) -> None:
        if going:
            at = now()
            for _ in range(number):
                account, hot = load.payer(here.notes.started)
                here.start(account, at, hot=hot)

    here.on_settled = next_ones
    next_ones(load.clients)
    await _window(here, load)
    going = False


async def on_schedule(here: Neighbours, load: Load) -> None:
    """Calls begin at a rate of their own, however long the others take."""
    ticker, loop, ticks = Ticker(load.rate_per_s), asyncio.get_running_loop(), 0

    def ticked() -> None:
        nonlocal ticks
        for _ in range(ticker.elapsed()):
            account, hot = load.payer(ticks)
            here.start(account, ticker.due_at(ticks), hot=hot)
            ticks += 1

    loop.add_reader(ticker.fd, ticked)
    await _window(here, load)
    loop.remove_reader(ticker.fd)
    ticker.close()


async def backlog(here: Neighbours, load: Load) -> None:
    """Reserve so many calls, queue their completions when told to, and wait until all are settled."""
    here.publishes = False
    renewing = asyncio.create_task(_renew(here))
    room = asyncio.Semaphore(_OPEN_BATCHES)
    here.on_reserved = lambda _number: room.release()
    for start in range(0, load.calls, BATCH_MAX):
        await room.acquire()
        for number in range(start, min(start + BATCH_MAX, load.calls)):
            here.start(load.payer(number)[0], now())
    for _ in range(_OPEN_BATCHES):
        await room.acquire()
    _say(RESERVED)
    await _told()
    for number, (call_id, call) in enumerate(here.open.items()):
        here.publish(call_id, call)
        if number % _PUBLISHED_AT_ONCE == 0:
            await here.router.flush()
    await here.router.flush()
    _say(QUEUED)
    await _told()
    here.notes.open_window(now())
    over = asyncio.Event()
    here.on_settled = lambda _number: over.set() if not here.open else None
    async with asyncio.timeout(_BACKLOG_S):
        await over.wait()
    here.notes.close_window(now())
    _say(WINDOW_CLOSES)
    renewing.cancel()


async def _renew(here: Neighbours) -> None:
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        await here.renew()


async def _window(here: Neighbours, load: Load) -> None:
    await asyncio.sleep(load.warmup_s)
    here.notes.open_window(now())
    _say(WINDOW_OPENS)
    await asyncio.sleep(load.seconds)
    _say(WINDOW_CLOSES)
    here.notes.close_window(now())


async def _told() -> None:
    """The benchmark's word to go on."""
    if not await asyncio.to_thread(sys.stdin.readline):
        raise EOFError("the benchmark has gone")


async def run(load: Load, urls: Sequence[str]) -> None:
    """Run one load to its end and say what came of it."""
    here = await Neighbours.connected(urls[0].strip(), urls[1].strip())
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    await (backlog if load.calls else on_schedule if load.rate_per_s else closed)(here, load)
    deadline = now() + _DRAIN_S
    while here.open and now() < deadline:  # noqa: ASYNC110 - many calls, one condition
        await asyncio.sleep(0.05)
    if here.open:
        here.notes.wrong["not settled"] = len(here.open)
    _say_raw(msgspec.json.encode(here.notes.result()).decode())
    await asyncio.gather(here.gateway.close(), here.router.close())


def _say(event: str) -> None:
    _say_raw(msgspec.json.encode({"event": event}).decode())


def _say_raw(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run from the command line; the first two lines of the input are the URLs of gateway and router."""
    parser = argparse.ArgumentParser(prog="bench.money_load", description=__doc__)
    parser.add_argument("--accounts", required=True, help="prefix:number")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: calls a second")
    parser.add_argument("--hot-share", type=float, default=0.0, help="of the first account; the others share the rest")
    parser.add_argument("--calls", type=int, default=0, help="a backlog of so many")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--warmup", type=float, default=0.0)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the output is the benchmark's
    prefix, number = options.accounts.rsplit(":", 1)
    load = Load(
        accounts=account_names(prefix, int(number)),
        clients=options.clients,
        rate_per_s=options.rate,
        hot_share=options.hot_share,
        calls=options.calls,
        seconds=options.seconds,
        warmup_s=options.warmup,
    )
    uvloop.run(run(load, (sys.stdin.readline(), sys.stdin.readline())))


def account_names(prefix: str, number: int) -> list[str]:
    """The accounts of a run."""
    return [f"did:abt:{prefix}{n}" for n in range(1, number + 1)]


if __name__ == "__main__":
    main()
