"""One charge on its way to a billing API that charges twice, unless it recognises the identifier.

The API recognises identifiers within a window. A POST takes much less than half of that window, and one worker at a
time has the row; a worker that sleeps for half a window between its look-up and its POST is not in this model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from model.explore import Protocol

POSTS_MAX: Final = 3
FRESH, PAST_HALF, FORGOTTEN = range(3)


class Outbox(NamedTuple):
    """The row, its worker, and what the billing API has."""

    row: str = "none"
    """none · pending · sent"""
    worker: str = "idle"
    """idle · picked · absent (looked up, not there) · accepted (the answer is here) · inline"""
    age: int = FRESH
    """Of the row, against the window."""
    posts: int = 0
    debits: int = 0
    value: int = 0
    """Of the first debit; the ledger has 1."""
    recognised: bool = False
    price: int = 1
    crashes: int = 0


@dataclass(frozen=True)
class Rules:
    """As built, unless a field weakens it."""

    crashes_max: int = 2

    fresh_identifier: bool = False
    """Each POST has an identifier of its own."""
    sent_first: bool = False
    """The row is marked before the POST."""
    inline: bool = False
    """Whoever settles posts, and no row stands for it."""
    no_look_up: bool = False
    """Past half of the window it posts again without looking."""
    value_recomputed: bool = False
    """The value is computed when it is posted."""


def protocol(rules: Rules) -> Protocol[Outbox]:
    """The protocol under these rules."""
    return Protocol(Outbox(), partial(_steps, rules), _safety, _at_rest)


def _steps(rules: Rules, s: Outbox) -> Iterator[tuple[str, Outbox]]:
    if s.row == "none":
        if rules.inline:
            yield "call settled", s._replace(row="sent", worker="inline")
        else:
            yield "call settled, row written", s._replace(row="pending")
    if s.worker == "idle" and s.row == "pending":
        yield from _picked(rules, s)
    if s.worker in {"picked", "absent", "inline"}:
        yield from _posted(rules, s)
    if s.worker == "accepted":
        yield "row marked as sent", s._replace(row="sent", worker="idle")
    if s.price == 1:
        yield "! the price changes", s._replace(price=2)
    if s.age == FRESH and s.row == "pending":
        yield "! half of the window passes", s._replace(age=PAST_HALF)
    if s.age == PAST_HALF and s.worker != "picked":
        yield "! the window passes", s._replace(age=FORGOTTEN, recognised=False)
    if s.crashes < rules.crashes_max and s.worker != "idle":
        yield "! worker dies", s._replace(worker="idle", crashes=s.crashes + 1)


def _picked(rules: Rules, s: Outbox) -> Iterator[tuple[str, Outbox]]:
    if rules.sent_first:
        yield "row marked as sent, then picked", s._replace(row="sent", worker="picked")
    elif s.age == FRESH or rules.no_look_up:
        yield "row picked", s._replace(worker="absent" if rules.no_look_up else "picked")
    elif s.debits:
        yield "row picked, looked up, found", s._replace(worker="accepted")
    else:
        yield "row picked, looked up, not there", s._replace(worker="absent")


def _posted(rules: Rules, s: Outbox) -> Iterator[tuple[str, Outbox]]:
    known = s.recognised and not rules.fresh_identifier
    value = s.price if rules.value_recomputed else 1
    applied = s._replace(
        debits=s.debits if known else s.debits + 1, value=s.value or value, recognised=True, posts=s.posts + 1
    )
    answered = "idle" if rules.sent_first or rules.inline else "accepted"
    yield "POST accepted", applied._replace(worker=answered)
    if s.posts < POSTS_MAX:
        yield "! POST applied, answer lost", applied._replace(worker="idle")
        yield "! POST lost", s._replace(worker="idle", posts=s.posts + 1)


def _safety(s: Outbox) -> str | None:
    return "I4: the user is debited twice" if s.debits > 1 else None


def _at_rest(s: Outbox) -> str | None:
    if s.row != "sent":
        return "I4: the row is never sent"
    if not s.debits:
        return "I4: settled, and the user is never debited"
    return "I4: the debit is not what the ledger has" if s.value != 1 else None
