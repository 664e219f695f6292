"""The invariants of the money path, checked from journals that the hub does not write, and from SQL.

I1 every call is terminal, with one terminal transition · I2 `held` is the sum of the open holds at every commit and 0
at rest · I3 `spent` = ledger = charged · I4 ledger = usage events · I5 failed means charged 0 and no final frame;
a final frame means success and this charge · I6 what was charged was served · I7 spent + held ≤ granted ·
I8 a charge is within its hold · I9 usage events are contiguous from 1 · I10 what a client read the provider sent.

Source: settle protocol, 5.2.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import asyncpg
import msgspec
from rig.hub import Hub
from rig.provider import Received
from rig.waiting import until

from contracts.cloudevent import UsageEvent
from contracts.events import Outcome
from contracts.streams import USAGE
from faults.clients import Told
from hub_local.credentials import ADMIN
from runtime.bus import Bus

Row = asyncpg.Record

AUDIT = """
create schema audit;
create table audit.ended (call_id uuid, state text, at timestamptz default now());
create index on audit.ended (call_id);
create table audit.unbalanced (account text, held numeric, open_holds numeric, at timestamptz default now());

create function audit.note_end() returns trigger language plpgsql security definer as $$
begin
    if new.state <> 'processing' and (old.state, old.credits) is distinct from (new.state, new.credits) then
        insert into audit.ended (call_id, state) values (new.id, new.state);
    end if;
    return null;
end $$;
create trigger audit_end after update on metering.model_call for each row execute function audit.note_end();

create function audit.compare_holds() returns trigger language plpgsql security definer as $$
declare
    open_holds numeric;
    now_held numeric;
begin
    select coalesce(sum(c.hold), 0) into open_holds
    from metering.model_call c where c.account = new.id and c.state = 'processing';
    select a.held into now_held from metering.account a where a.id = new.id;
    if now_held <> open_holds then
        insert into audit.unbalanced (account, held, open_holds) values (new.id, now_held, open_holds);
    end if;
    return null;
end $$;
create constraint trigger audit_holds after update on metering.account deferrable initially deferred
    for each row execute function audit.compare_holds();
"""


async def install_audit(hub: Hub) -> None:
    """Triggers that note each terminal transition, and each commit after which `held` is not the sum of open holds."""
    connection = await asyncpg.connect(hub.servers.credentials.dsn(ADMIN, hub.servers.ports.postgres))
    try:
        await connection.execute(AUDIT)
    finally:
        await connection.close()


@dataclass(frozen=True)
class Account:
    """What is known of one account at rest, from every side."""

    row: Row
    calls: list[Row]
    ledger: list[Row]
    events: list[UsageEvent]
    served: list[Received]
    told: Sequence[Told]

    def call(self, told: Told) -> Row:
        """The ModelCall of a request."""
        return next(call for call in self.calls if call["request_id"] == told.request_id)


async def at_rest(
    hub: Hub,
    operator: Bus,
    account: str,
    told: Sequence[Told],
    served: Sequence[Received],
    *,
    within_s: float = 20.0,
    announced: bool = True,
) -> Account:
    """Wait until nothing of an account is open or under way, then read it from every side.

    Args:
        announced: wait for its usage events, too; else `Account.events` is what has come by now.
    """

    async def quiet() -> bool:
        return not await hub.value(
            "select count(*) from metering.model_call where account = $1 and state = 'processing'", account
        )

    async def all_stored() -> bool:
        behind = """select a.seq - coalesce(s.seq, 0) from metering.account a
                    left join metering.usage_sent s on s.account = a.id where a.id = $1"""
        known = "select made_at from metering.usage_stream"  # a bus that was wiped has another stream
        here = msgspec.json.decode(await operator.call(f"$JS.API.STREAM.INFO.{USAGE.name}", b"", 2.0))["created"]
        return await hub.value(known) == here and not await hub.value(behind, account)

    await until(quiet, within_s=within_s, what=f"every call of {account} is terminal")
    if announced:
        await until(all_stored, within_s=25.0, what=f"every usage event of {account} is stored")
    calls = await hub.fetch("select * from metering.model_call where account = $1 order by id", account)
    ids = {str(call["id"]) for call in calls}
    return Account(
        row=(await hub.fetch("select * from metering.account where id = $1", account))[0],
        calls=calls,
        ledger=await hub.fetch("select * from metering.ledger where account = $1 order by acct_seq", account),
        events=[event for event in await usage_events(operator) if event.data.account == account],
        served=[received for received in served if received.call_id in ids],
        told=told,
    )


async def check(hub: Hub, account: Account, *, unpaid: int = 0) -> None:
    """Hold an account against I1 to I10.

    Args:
        unpaid: calls that the provider served to the end and nobody paid, because a part died in that window.
    """
    await check_transitions(hub, account)
    check_books(account)
    check_prices(account)
    unexplained = await hub.fetch(
        "select d.* from metering.credit_differences($1) d"
        " where not exists (select 1 from metering.payment_account p where p.account = d.account)",  # Payment Kit's
        account.row["id"],
    )
    assert not unexplained, f"I3: {unexplained}"
    check_events(account)
    check_clients(account)
    await check_provider(hub, account, unpaid)


async def check_transitions(hub: Hub, account: Account) -> None:
    """I1 and, over the whole run, I2; nothing is parked."""
    ids = [call["id"] for call in account.calls]
    ended = Counter(
        [row["call_id"] for row in await hub.fetch("select * from audit.ended where call_id = any ($1)", ids)]
    )
    assert all(call["state"] in {"success", "failed"} for call in account.calls), "I1: a call is open"
    assert ended == Counter(ids), f"I1: terminal transitions {ended}"
    unbalanced = await hub.fetch("select * from audit.unbalanced where account = $1", account.row["id"])
    assert not unbalanced, f"I2: {unbalanced}"
    parked = await hub.fetch("select reason, subject from metering.parked")
    assert not parked, f"parked: {parked}"


def check_books(account: Account) -> None:
    """I2, I3, I5, I7 and I8 at rest."""
    row = account.row
    charged = sum((call["credits"] for call in account.calls), Decimal(0))
    booked = sum((entry["amount"] for entry in account.ledger), Decimal(0))
    assert row["held"] == 0, f"I2: {row['held']} held at rest"
    assert row["spent"] == charged == booked, f"I3: spent {row['spent']}, charged {charged}, ledger {booked}"
    by_id = {call["id"]: call for call in account.calls}
    assert len(account.ledger) == len({entry["call_id"] for entry in account.ledger}), "I3: a call booked twice"
    assert all(by_id[entry["call_id"]]["credits"] == entry["amount"] for entry in account.ledger), "I3: amounts differ"
    assert row["spent"] + row["held"] <= row["granted"], "I7: overspent"
    assert all(call["credits"] <= call["hold"] for call in account.calls), "I8: charged above the hold"
    assert all(call["credits"] == 0 for call in account.calls if call["state"] == "failed"), "I5: a failed call charged"


def check_prices(account: Account) -> None:
    """I8: what was charged and what was not is the usage at the frozen rates, and the usage is what was served."""
    sent = {(received.call_id, received.finished): bytes(received.sent).decode() for received in account.served}
    for call in account.calls:
        cost = _cost(call)
        if call["state"] == "success":
            assert call["credits"] + call["overrun"] == cost, f"I8: {call['credits']} charged, {cost} used"
            assert call["overrun"] == 0 or call["credits"] == call["hold"], "I8: overrun below the hold"
        body = sent.get((str(call["id"]), True))
        if body is not None and call["state"] == "success" and call["usage_source"] == "reported":
            reported = _reported(body, stream=call["stream"])
            if reported is not None:
                assert (call["input_tokens"], call["output_tokens"]) == reported, "I6: other usage than was served"


def _cost(call: Row) -> Decimal:
    """Of a call's counted tokens, computed here: the two units that these tests use."""
    if call["rates"] is None:
        return Decimal(0)
    rates = msgspec.json.decode(call["rates"])
    tokens = {"input": call["input_tokens"] or 0, "output": call["output_tokens"] or 0}
    exact = sum(
        (Decimal(rates.get(unit, 0)) * count for unit, count in tokens.items()), Decimal(rates.get("request", "0"))
    )
    return exact.quantize(Decimal("1E-10"), ROUND_HALF_UP)


def _reported(body: str, *, stream: bool) -> tuple[int, int] | None:
    """Tokens in and out, as the provider wrote them; None when it wrote none."""
    texts = (
        [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: {")] if stream else [body]
    )
    for text in reversed(texts):
        usage = msgspec.json.decode(text).get("usage")
        if usage:
            return usage["prompt_tokens"], usage["completion_tokens"]
    return None


def check_events(account: Account) -> None:
    """I4 and I9."""
    assert len(account.events) == len({event.id for event in account.events}), "I4: an event stored twice"
    events = {event.data.call_id: (event.data.sequence, Decimal(event.data.credits)) for event in account.events}
    ledger = {str(entry["call_id"]): (entry["acct_seq"], entry["amount"]) for entry in account.ledger}
    assert events == ledger, f"I4: ledger {ledger}, usage events {events}"
    settled = {str(call["id"]): call["credits"] for call in account.calls}
    assert {call_id: amount for call_id, (_, amount) in ledger.items()} == settled, f"I4: settled {settled}"
    sequences = sorted(event.data.sequence for event in account.events)
    assert sequences == list(range(1, len(account.calls) + 1)), f"I9: {sequences}"
    assert all(event.sequence == f"{event.data.sequence:020d}" for event in account.events)


def check_clients(account: Account) -> None:
    """I5, from what clients were told."""
    by_request = {call["request_id"]: call for call in account.calls}
    by_id = {str(call["id"]): call for call in account.calls}
    assert len(by_request) == len(account.calls), "one request became two calls"
    for told in account.told:
        assert not told.hung, f"{told.request_id} hung"
        call = by_id.get(told.call_id) if told.replayed else by_request.get(told.request_id)
        if told.final:
            assert call is not None, f"I5: {told.request_id} got an answer without a call"
            assert call["state"] == "success", f"I5: a final frame for a call that is {call['state']}"
            assert str(call["id"]) == told.call_id
            assert told.credits is not None, f"I5: {told.request_id} was not told what it paid"
            assert Decimal(told.credits) == call["credits"], "I5: told another charge"
        assert not (told.final and told.error), "I5: an error and a final frame"


async def check_provider(hub: Hub, account: Account, unpaid: int) -> None:
    """I6 and I10, from the provider's journal."""
    tries = await hub.fetch(
        "select call_id, number from metering.attempt where call_id = any ($1)", [call["id"] for call in account.calls]
    )
    recorded = {(str(row["call_id"]), row["number"]) for row in tries}
    served = {received.request_id: received for received in account.served}
    assert len(served) == len(account.served), "I6: the provider was asked twice for one attempt"
    states = {str(call["id"]): call for call in account.calls}
    charged = {call_id for call_id, call in states.items() if call["credits"] > 0}
    assert charged <= {received.call_id for received in account.served}, "I6: charged, never served"
    for call_id in charged:
        asked = {request_id for request_id in served if request_id[0] == call_id}
        assert asked <= recorded, f"I6: attempts {asked} of a charged call, recorded {recorded}"
        last = states[call_id]["attempts"]
        assert (call_id, last) in served, f"I6: attempt {last} is charged, and was never served"
    finished = {received.call_id for received in account.served if received.finished and received.chunks_sent}
    lost = {call_id for call_id in finished - charged if states[call_id]["state"] == "failed"}
    assert len(lost) <= unpaid, f"I6: served and not paid: {lost}"
    sent = {received.call_id: bytes(received.sent).decode() for received in account.served}
    for told in account.told:
        if told.text or told.final:
            assert told.call_id in sent, f"I10: nobody served what {told.request_id} was told"
        if told.text:
            assert _text(sent[told.call_id], stream=told.stream).startswith(told.text), "I10: other text than sent"
        if told.final and states[told.call_id]["outcome"] != Outcome.CREDIT_EXHAUSTED:  # such a one is cut, and paid so
            assert _text(sent[told.call_id], stream=told.stream) == told.text, "I10: text is missing"


def _text(body: str, *, stream: bool) -> str:
    """Text of an OpenAI answer as the provider wrote it."""
    if not stream:
        answer: dict[str, Any] = msgspec.json.decode(body)
        return str(answer["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: {")]
    chunks: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


async def usage_events(operator: Bus) -> list[UsageEvent]:
    """All events on the stream, repeats too, in the stream's order."""
    js = operator.jetstream()
    found: list[UsageEvent] = []
    subscription = await js.subscribe("hub.v1.usage.recorded.*", stream=USAGE.name, ordered_consumer=True)
    try:
        left = (await js.stream_info(USAGE.name)).state.messages
        while left:
            message = await subscription.next_msg(timeout=5)
            found.append(msgspec.json.decode(message.data, type=UsageEvent))
            left -= 1
    finally:
        await subscription.unsubscribe()
    return found
