"""The checks themselves: each sees the violation that it is there for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from rig.provider import Received

from contracts.cloudevent import UsageEvent, usage_event
from contracts.events import UsageRecorded
from contracts.usage import Usage
from faults import invariants
from faults.clients import Told
from faults.invariants import Account

COST = Decimal("0.017")


def call(number: int, **other: Any) -> dict[str, Any]:
    whole = {
        "id": f"c{number}", "request_id": f"r{number}", "state": "success", "credits": COST, "hold": COST * 2,
        "overrun": Decimal(0), "input_tokens": 7, "output_tokens": 5, "usage_source": "reported", "stream": False,
        "rates": '{"input":"0.001","output":"0.002"}',
    }  # fmt: skip
    return {**whole, **other}


def event(number: int, **other: Any) -> UsageEvent:
    fields: dict[str, Any] = {"sequence": number, "credits": str(COST), "state": "success", **other}
    return usage_event(
        UsageRecorded(
            call_id=f"c{number}", account="a", outcome="stop", kind="chat", model="m", provider="p", usage=Usage(),
            rates={}, **fields,
        )
    )  # fmt: skip


def told(number: int, **other: Any) -> Told:
    usage = {"credits": f"{COST:f}"}
    return Told(
        **{"request_id": f"r{number}", "stream": False, "call_id": f"c{number}", "final": True, "usage": usage} | other
    )


def account(**other: Any) -> Account:
    """Two calls, both served and charged; nothing is wrong with it."""
    entries = [{"call_id": f"c{n}", "acct_seq": n, "amount": COST} for n in (1, 2)]
    row = {"id": "a", "held": Decimal(0), "spent": COST * 2, "granted": Decimal(1)}
    sides: dict[str, Any] = {
        "row": row,
        "calls": [call(1), call(2)],
        "ledger": entries,
        "events": [event(1), event(2)],
        "served": [],
        "told": [told(1), told(2)],
    }
    return replace(Account(**sides), **other)


def test_an_account_without_fault_passes() -> None:
    invariants.check_books(account())
    invariants.check_events(account())
    invariants.check_clients(account())


@pytest.mark.parametrize(
    ("row", "calls", "invariant"),
    [
        ({"held": COST}, {}, "I2"),
        ({"spent": COST}, {}, "I3"),
        ({"granted": COST}, {}, "I7"),
        ({}, {"hold": COST / 2}, "I8"),
        ({}, {"state": "failed"}, "I5"),
    ],
)
def test_books_that_do_not_agree_are_seen(row: Mapping[str, Any], calls: Mapping[str, Any], invariant: str) -> None:
    good = account()
    bad = replace(good, row={**good.row, **row}, calls=[call(1, **calls), call(2)])
    with pytest.raises(AssertionError, match=invariant):
        invariants.check_books(bad)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"output_tokens": 6}, "I8: 0.017 charged, 0.0190000000 used"),
        ({"credits": COST - 1, "overrun": Decimal(1)}, "I8: overrun below the hold"),
        ({"rates": '{"input":"0.003","output":"0.002"}'}, "I8"),
    ],
)
def test_charges_that_are_not_the_usage_at_its_rates_are_seen(wrong: Mapping[str, Any], words: str) -> None:
    good = account()
    invariants.check_prices(good)
    with pytest.raises(AssertionError, match=words):
        invariants.check_prices(replace(good, calls=[call(1, **wrong), call(2)]))


def test_usage_that_the_provider_did_not_report_is_seen() -> None:
    served = Received(1, "/", (("x-request-id", "c1:1"),), b"", finished=True)
    served.sent += b'{"usage": {"prompt_tokens": 7, "completion_tokens": 5}}'
    invariants.check_prices(account(served=[served]))
    served.sent[:] = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 4}}'
    with pytest.raises(AssertionError, match="I6: other usage"):
        invariants.check_prices(account(served=[served]))


def test_a_settled_call_without_a_ledger_row_is_seen() -> None:
    good = account()
    with pytest.raises(AssertionError, match="I4: settled"):
        invariants.check_events(replace(good, ledger=good.ledger[:1], events=good.events[:1]))


def test_a_call_booked_twice_is_seen() -> None:
    good = account()
    twice = replace(good, ledger=[good.ledger[0], good.ledger[0]])
    with pytest.raises(AssertionError, match="I3: a call booked twice"):
        invariants.check_books(twice)


@pytest.mark.parametrize(
    ("events", "invariant"),
    [
        ([event(1)], "I4"),
        ([event(1), event(2), event(2)], "I4"),
        ([event(1), event(2, credits="0.016")], "I4"),
        ([event(1), event(2, sequence=3)], "I4"),
    ],
)
def test_usage_events_that_are_not_the_ledger_are_seen(events: list[UsageEvent], invariant: str) -> None:
    with pytest.raises(AssertionError, match=invariant):
        invariants.check_events(account(events=events))


def test_a_gap_in_the_sequence_is_seen_although_ledger_and_events_agree() -> None:
    entries = [{"call_id": "c1", "acct_seq": 1, "amount": COST}, {"call_id": "c2", "acct_seq": 3, "amount": COST}]
    with pytest.raises(AssertionError, match="I9"):
        invariants.check_events(account(ledger=entries, events=[event(1), event(2, sequence=3)]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: {"told": [told(3)]}, "without a call"),
        (lambda: {"calls": [call(1, state="failed")], "told": [told(1)]}, "a final frame for a call that is failed"),
        (lambda: {"told": [told(1, usage={"credits": "0.018"})]}, "told another charge"),
        (lambda: {"told": [told(1, usage=None)]}, "not told what it paid"),
        (lambda: {"told": [told(1, error="router_lost")]}, "an error and a final frame"),
        (lambda: {"told": [told(1, hung=True)]}, "hung"),
    ],
)
def test_what_clients_were_told_is_held_against_the_books(wrong: Callable[[], dict[str, Any]], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        invariants.check_clients(account(**wrong()))
