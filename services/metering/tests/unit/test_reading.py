"""Messages in: what is refused, what is mended."""

from typing import Any

import msgspec
import pytest
from neighbours import CANDIDATE, call

from contracts.events import Attempt, CallCompleted, CallFailed
from contracts.ids import new_call_id
from contracts.rpc.metering import ReserveBatch, ReserveCall, ReserveResult
from contracts.usage import Candidate, Rates, Usage, UsageSource
from metering import events, reserve

COMPLETED = "hub.v1.calls.completed.chat"
FAILED = "hub.v1.calls.failed.chat"


def _completed(**changes: object) -> CallCompleted:
    values = {
        "call_id": new_call_id(),
        "epoch": 1,
        "account": "did:a",
        "kind": "chat",
        "outcome": "stop",
        "candidate": CANDIDATE,
        "usage": Usage(input_tokens=1),
        "attempts": (),
        "duration_ms": 1,
        "first_byte_ms": 1,
        "completed_at": "2026-11-25T09:30:00.000Z",
    }
    return msgspec.convert(values | changes, CallCompleted)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"call_id": 1}',
        b"\xff\xfe",
        msgspec.json.encode(_completed(call_id="no-uuid")),
        msgspec.json.encode(_completed(candidate=Candidate("p", "m", Rates(input="NaN")))),
        msgspec.json.encode(_completed(candidate=Candidate("p", "m", Rates(output="-1")))),
    ],
)
def test_a_fact_that_can_never_be_settled_is_unreadable(payload: bytes) -> None:
    with pytest.raises(events.UnreadableFactError):
        events.read(COMPLETED, payload)


def test_an_unknown_outcome_is_other() -> None:
    assert events.read(COMPLETED, msgspec.json.encode(_completed(outcome="from the future"))).outcome == "other"


def test_usage_that_nobody_can_believe_is_bounded_and_marked() -> None:
    fact = events.read(COMPLETED, msgspec.json.encode(_completed(usage=Usage(input_tokens=-5, output_tokens=10**15))))
    assert (fact.usage.input_tokens, fact.usage.source) == (0, UsageSource.ESTIMATED)


def test_what_a_provider_sent_cannot_make_a_fact_poisonous() -> None:
    attempt = Attempt(1, "p\x00", "m" * 10_000, "c", 200)
    fact = events.read(COMPLETED, msgspec.json.encode(_completed(attempts=(attempt,))))
    assert "\x00" not in str(fact.row)
    assert len(str(fact.row)) < 5000
    failed = CallFailed(new_call_id(), 1, "did:a", "chat", "stale", "\x00" * 5000, "2026-11-25T09:30:00.000Z")
    reason = events.read(FAILED, msgspec.json.encode(failed)).row[17]
    assert reason == "\N{REPLACEMENT CHARACTER}" * 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"hold": "NaN"},
        {"hold": "-1"},
        {"hold": "Infinity"},
        {"hold": "1e18"},
        {"hold": "999999999999999999.99999999995"},
        {"hold": ""},
        {"hold": "1,5"},
        {"hold": "9e999999999999"},
        {"call_id": "x"},
        {"call_id": new_call_id().upper()},
        {"account": ""},
        {"account": "a" * 201},
        {"account": "a\x00b"},
        {"model": "m\x00"},
        {"user": "u" * 501},
        {"ttl_s": 0.0},
        {"ttl_s": -1.0},
        {"ttl_s": 1e12},
        {"idempotency_key": "short"},
        {"idempotency_key": "ab" * 32, "body_digest": "short"},
        {"candidates": (Candidate("p\x00", "m", Rates()),)},
    ],
)
def test_a_value_out_of_its_domain_refuses_its_call_alone(changes: dict[str, Any]) -> None:
    good, bad = call(), call(**changes)
    request, asked = reserve.read(msgspec.json.encode(ReserveBatch((good, bad))), b"", 0.0)
    assert [one.call_id for one in asked] == [good.call_id]
    assert request.results[1] is not None
    assert request.results[1].status == "invalid"


def test_a_batch_is_answered_in_its_order_once_complete() -> None:
    calls: tuple[ReserveCall, ...] = (call(), call(), call())
    request, asked = reserve.read(msgspec.json.encode(ReserveBatch(calls)), b"", 0.0)
    answered = [request.answer(one.place, ReserveResult(f"s{one.place}")) for one in reversed(asked)]
    assert answered == [False, False, True]
    assert [result["status"] for result in msgspec.json.decode(request.encoded())["results"]] == ["s0", "s1", "s2"]
