"""One call from its reserve to its final frame: gateway, router, bus, two meterings, janitor, client.

What one transaction of PostgreSQL does is one step. Everything else may be lost, repeated, late or cut off by a
crash in any order; the lease is judged by nobody, so that the janitor may close an open call at any time.

Follows `gateway/dispatch.py`, `gateway/admission/reserve.py`, `provider_router/intake.py`,
`provider_router/outcome.py`, `metering/turns.py`, `metering/leases.py` and `janitor/duties/stale_calls.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from model.explore import Protocol

FACTS: Final = ("router's outcome", "undispatched", "stale", "new owner's outcome", "stale (epoch 2)")
OWN, UNDISPATCHED, STALE, TAKEN, STALE_2 = range(5)
EPOCH: Final = (1, 1, 1, 2, 2)
ABSENT, STORED, ACKED = range(3)
COST: Final = {"whole": 2, "partial": 1, "failed": 0}
_LISTENING: Final = frozenset(("sent", "accepted", "tail"))


class Call(NamedTuple):
    """Everything that matters of one call; amounts in whole credits."""

    gateway: str = "idle"
    """idle · asking · reserved · sent · accepted · tail (the answer's end is held) · over · dead"""
    client: str = "waiting"
    """waiting · answered (saw the final frame) · error · left"""
    row: str = "none"
    """none · open · success · failed"""
    epoch: int = 1
    hold: int = 0
    held: int = 0
    """Of the account."""
    spent: int = 0
    ends: int = 0
    """Terminal transitions."""
    closed_by: int = 0
    """Epoch of the fact that closed the row."""
    asks: int = 0
    """Reserves whose reply was lost."""
    dispatched: bool = False
    """The dispatch is under way."""
    router: str = "idle"
    """idle · running · open (its outcome is not known to be settled) · dead"""
    outcome: str = ""
    spooled: bool = False
    served: int = 0
    """Answers, whole or in part, that the provider gave under epoch 1."""
    extending: bool = False
    """A question for more credit is under way."""
    extended: bool = False
    """It was asked once."""
    end_frame: bool = False
    """Under way."""
    bus: tuple[int, ...] = (ABSENT,) * len(FACTS)
    repeated: bool = False
    """The outcome was stored a second time, past the window in which the stream knows its id."""
    meterings: tuple[str, str] = ("", "")
    """Of each process: nothing, or `got N` before and `did N` after the commit for fact N. Sorted: they are alike."""
    told: str = ""
    """Row's state as the gateway has heard it."""
    crashes: int = 0
    losses: int = 0
    """Power cuts of the bus."""


@dataclass(frozen=True)
class Rules:
    """As built, unless a field weakens it."""

    crashes_max: int = 2
    losses_max: int = 1
    extends: bool = False
    """The router asks for more credit."""
    spools: bool = False
    """Outcomes are spooled, and stored again past the window in which the stream knows their ids."""
    takeover: bool = False
    """Another router may take the call over, once."""
    punctual: bool = False
    """Neither router nor gateway dies, and the janitor waits as long as one of them works: whoever was served pays."""

    no_compare: bool = False
    """Settling looks at no state."""
    no_epoch: bool = False
    """Settling compares no epoch."""
    revive: bool = False
    """A late success overwrites a failure."""
    two_transactions: bool = False
    """The hold is released after the commit that closes the call."""
    reserve_again_holds: bool = False
    """A repeated reserve holds again."""
    extend_unchecked: bool = False
    """A hold is raised whatever state the call is in."""
    ack_first: bool = False
    """Acked when it arrives, before the commit."""
    tell_first: bool = False
    """The gateway is told before the commit."""
    final_at_end: bool = False
    """The final frame goes out when the answer is whole."""
    final_when_stored: bool = False
    """The final frame goes out when the bus has stored the outcome."""
    publish_once: bool = False
    """An outcome is published and forgotten."""
    dispatch_redelivered: bool = False
    """A dispatch may travel twice."""
    janitor_writes: bool = False
    """The janitor writes to the row itself, from what it read before."""


def protocol(rules: Rules) -> Protocol[Call]:
    """The protocol under these rules."""
    return Protocol(Call(), partial(_steps, rules), _safety, partial(_at_rest, rules))


def _steps(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    for name, after in _all_steps(rules, s):
        yield name, _plain(after)


def _plain(s: Call) -> Call:
    """The same state without what nobody will look at again: far fewer states, and no schedule less."""
    gone: dict[str, Any] = {}
    if s.gateway != "asking" and s.asks:
        gone["asks"] = 0
    if s.gateway not in _LISTENING and (s.told or s.end_frame):
        gone.update(told="", end_frame=False)
    if s.router != "running" and s.extended:
        gone["extended"] = False
    closed = s.row in {"success", "failed"}
    if closed and s.hold:
        gone["hold"] = 0
    if s.router in {"idle", "dead"} and not s.spooled:
        if s.repeated:
            gone["repeated"] = False
        if s.outcome and s.bus[OWN] != STORED and f"got {OWN}" not in s.meterings:
            gone["outcome"] = ""
    if closed and ACKED in s.bus:
        keeps_own = s.router == "open" or s.spooled
        gone["bus"] = tuple(
            ABSENT if state == ACKED and not (number == OWN and keeps_own) else state
            for number, state in enumerate(s.bus)
        )
    return s._replace(**gone) if gone else s


def _all_steps(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    yield from _admission(rules, s)
    yield from _gateway(rules, s)
    yield from _router(rules, s)
    yield from _bus(rules, s)
    yield from _meterings(rules, s)
    yield from _others(rules, s)
    if s.crashes < rules.crashes_max:
        yield from _crashes(rules, s)


def _admission(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    if s.gateway == "idle":
        yield "gateway asks for a hold", s._replace(gateway="asking")
    if s.gateway == "asking":
        if s.row == "none":
            done = s._replace(row="open", hold=1, held=s.held + 1)
            yield "reserve commits, reply arrives", done._replace(gateway="reserved")
        else:
            done = s._replace(held=s.held + 1) if rules.reserve_again_holds else s
            yield "reserve finds the row, reply arrives", done._replace(gateway="over", client="error")
        if s.asks < 1:
            yield "! reserve commits, reply lost, asked again", done._replace(asks=1)
        yield "no reply to the reserve", s._replace(gateway="over", client="error")
    if s.gateway == "reserved":
        yield "gateway dispatches", s._replace(gateway="sent", dispatched=True)
        yield "client leaves before the dispatch", _give_up(s, "left")
    if s.dispatched:
        kept = rules.dispatch_redelivered
        if s.router in {"idle", "dead"}:
            yield "router accepts", s._replace(router="running", outcome="", dispatched=kept and not s.served)
        yield "! dispatch lost", s._replace(dispatched=False)


def _give_up(s: Call, client: str) -> Call:
    return _stored(s, UNDISPATCHED)._replace(gateway="over", client=client)


def _gateway(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    if s.gateway not in _LISTENING:
        return
    if s.gateway == "sent":
        if s.router in {"running", "open"}:
            yield "ACCEPTED arrives", s._replace(gateway="accepted")
        if not rules.punctual or (s.router == "idle" and not s.dispatched):
            yield "nobody accepts in time", _give_up(s, "error")
            yield "! nobody accepts in time, and the fact is lost", s._replace(gateway="over", client="error")
    if s.gateway == "accepted":
        if s.end_frame:
            yield "END arrives", s._replace(gateway="tail", end_frame=False)
            yield "! frames lost", s._replace(end_frame=False)
        yield from _stopped("silence, gap or time-out", s._replace(gateway="over", client="error"), "failed")
    yield from _stopped("client leaves", s._replace(gateway="over", client="left"), "partial")
    if s.gateway == "tail":
        if s.row in {"success", "failed"} and not s.told:
            yield "gateway asks metering, which says settled", s._replace(told=s.row)
        yield "the settled notice does not come in time", s._replace(gateway="over", client="error")
        if s.told == "success" or _released_early(rules, s):
            yield "final frame", s._replace(gateway="over", client="answered")
        elif s.told == "failed":
            yield "error event", s._replace(gateway="over", client="error")


def _released_early(rules: Rules, s: Call) -> bool:
    return rules.final_at_end or (rules.final_when_stored and s.bus[OWN] != ABSENT)


def _stopped(name: str, after: Call, outcome: str) -> Iterator[tuple[str, Call]]:
    """Nobody waits any more: the router hears of it, or does not."""
    yield f"{name}, the cancel is lost", after
    if after.router == "running":
        served = after.served + (outcome == "partial")
        yield f"{name}, upstream is cancelled", after._replace(router="open", outcome=outcome, served=served)


def _router(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    if s.router == "running":
        served = s._replace(router="open", outcome="whole", served=s.served + 1, end_frame=s.gateway in _LISTENING)
        yield "upstream serves the whole answer", served
        yield "upstream breaks, or the gateway is gone", s._replace(router="open", outcome="failed")
        if rules.extends and not s.extended:
            yield "router asks for more credit", s._replace(extending=True, extended=True)
    if s.extending:
        may = s.row == "open" and s.epoch == 1
        if may or (rules.extend_unchecked and s.row != "none"):
            yield "hold raised", s._replace(extending=False, hold=s.hold + 1, held=s.held + 1)
        yield "no credit, or the call has ended", s._replace(extending=False)
    if s.router == "open":
        after = s._replace(router="idle") if rules.publish_once else s
        if s.bus[OWN] == ABSENT:
            yield "outcome stored", _stored(after, OWN)
        if rules.publish_once:
            yield "! outcome lost", after
        elif rules.spools and s.bus[OWN] == ACKED and not s.repeated:
            yield "! outcome stored again, past the window", _message(s, OWN, STORED)._replace(repeated=True)
        if rules.spools and not s.spooled and not rules.publish_once:
            yield "! outcome spooled", s._replace(spooled=True)
        if s.row in {"success", "failed"}:
            yield "router learns that it is settled", s._replace(router="idle", spooled=False)
    if s.router == "dead" and s.spooled:
        yield "a successor adopts the spool", s._replace(router="open")


def _bus(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    if s.losses < rules.losses_max and any(s.bus):
        yield "! the bus loses everything", s._replace(bus=(ABSENT,) * len(FACTS), losses=s.losses + 1)


def _meterings(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    for place, work in enumerate(s.meterings):
        if place and work == s.meterings[0]:
            break  # its twin does the same
        if not work:
            for number, state in enumerate(s.bus):
                if state == STORED:
                    after = _message(s, number, ACKED) if rules.ack_first else s
                    yield f"metering gets: {FACTS[number]}", _working(after, place, f"got {number}")
            continue
        number = int(work[4:])
        if work.startswith("got"):
            settled = _settled(rules, s, number)
            yield f"commit: {FACTS[number]}", _working(settled, place, f"did {number}")
            if not rules.ack_first:
                yield "! the turn fails, nak", _working(s, place, "")
                yield f"! commit: {FACTS[number]}; the answer is lost, nak", _working(settled, place, "")
            if rules.tell_first:
                yield "gateway is told", _told(s, "failed" if number in {UNDISPATCHED, STALE} else "success")
            continue
        released = s._replace(held=0) if rules.two_transactions and s.row != "open" else s
        yield "gateway is told", _told(s, s.row)
        acked = _message(released, number, ACKED) if s.bus[number] == STORED else released
        yield "ack", _working(acked, place, "")
        yield "! ack lost", _working(released, place, "")


def _told(s: Call, state: str) -> Call:
    return s._replace(told=state) if s.gateway in _LISTENING and not s.told else s


def _settled(rules: Rules, s: Call, number: int) -> Call:
    """One transaction: compare and set, release the hold, charge."""
    outcome = {OWN: s.outcome, TAKEN: "whole"}.get(number, "failed")
    state = "failed" if outcome == "failed" else "success"
    closed = s.row in {"success", "failed"}
    fits = s.row == "open" and (s.epoch == EPOCH[number] or rules.no_epoch)
    fits = fits or (closed and rules.no_compare) or (s.row == "failed" and state == "success" and rules.revive)
    if not fits:
        return s
    hold = 0 if rules.two_transactions or closed else s.hold
    charge = min(COST[outcome], s.hold)
    return s._replace(row=state, held=s.held - hold, spent=s.spent + charge, ends=s.ends + 1, closed_by=EPOCH[number])


def _others(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    """The janitor, and whoever takes the call over."""
    if rules.takeover and s.row == "open" and s.epoch == 1 and s.gateway in {"over", "dead"}:
        yield "another router takes the call over", s._replace(epoch=2)
    if s.epoch == 2 and s.bus[TAKEN] == ABSENT and s.row == "open":
        yield "the new owner's outcome is stored", _stored(s, TAKEN)
    if rules.janitor_writes and s.row in {"open", "success"}:
        yield "janitor writes: failed", s._replace(row="failed", held=0, ends=s.ends + 1, closed_by=s.epoch)
    if s.row != "open" or (rules.punctual and not _forsaken(s)):
        return
    number = STALE if s.epoch == 1 else STALE_2
    yield f"janitor publishes: {FACTS[number]}", _stored(s, number)


def _forsaken(s: Call) -> bool:
    """No process works on the call, and none will."""
    return s.router == "idle" and not s.dispatched and s.gateway in {"over", "dead"}


def _crashes(rules: Rules, s: Call) -> Iterator[tuple[str, Call]]:
    count = s.crashes + 1
    if s.gateway not in {"idle", "over", "dead"} and not rules.punctual:
        client = "error" if s.client == "waiting" else s.client
        yield "! gateway dies", s._replace(gateway="dead", client=client, crashes=count)
    if s.router in {"running", "open"} and not rules.punctual:
        yield "! router dies", s._replace(router="dead", crashes=count)
    for place, work in enumerate(s.meterings):
        if work:
            yield "! metering dies", _working(s, place, "")._replace(crashes=count)


def _stored(s: Call, number: int) -> Call:
    """Published under a constant id: what the stream knows is not stored again."""
    return _message(s, number, STORED) if s.bus[number] == ABSENT else s


def _message(s: Call, number: int, state: int) -> Call:
    return s._replace(bus=(*s.bus[:number], state, *s.bus[number + 1 :]))


def _working(s: Call, place: int, work: str) -> Call:
    other = s.meterings[1 - place]
    return s._replace(meterings=(work, other) if work <= other else (other, work))


def _safety(s: Call) -> str | None:
    closed = s.row in {"success", "failed"}
    broken = (
        (s.ends > 1, "I1: two terminal transitions"),
        (s.held != (s.hold if s.row == "open" else 0), "I2: what is held is not the sum of open holds"),
        (s.row == "failed" and s.spent > 0, "I5: a failed call was charged"),
        (s.client == "answered" and s.row != "success", "I5: a final frame for a call that is no success"),
        (s.spent > 0 and not s.served and s.closed_by == 1, "I6: charged, never served"),
        (s.served > 1, "I6: the provider was asked twice"),
        (closed and s.closed_by != s.epoch, "closed by a fact of another epoch"),
    )
    return next((what for wrong, what in broken if wrong), None)


def _at_rest(rules: Rules, s: Call) -> str | None:
    broken = (
        (s.row == "open", "I1: the call is never closed"),
        (s.client == "waiting", "the client waits for ever"),
        (STORED in s.bus, "an outcome is never acknowledged"),
        (s.router == "open" or s.spooled, "a router never forgets the outcome"),
        (rules.punctual and s.served and s.row == "failed", "I6: served to the end, nobody died, and nobody pays"),
    )
    return next((what for wrong, what in broken if wrong), None)
