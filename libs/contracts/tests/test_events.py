"""Facts and usage events: constant ids, an envelope that other systems can read."""

from datetime import datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from contracts import events
from contracts.cloudevent import USAGE_RECORDED_TYPE, UsageEvent, usage_event
from contracts.events import UsageRecorded
from contracts.ids import new_call_id
from contracts.subjects import CallKind, usage_recorded
from contracts.usage import Usage

TOKENS = st.integers(0, 10**9)


def recorded(sequence: int = 1) -> UsageRecorded:
    return UsageRecorded(
        call_id=new_call_id(), account="did:abt:a", sequence=sequence, state="success", outcome="stop",
        credits="0.0000000001", kind="chat", model="m", provider="p", usage=Usage(1, 2), rates={"input": "0.1"},
        settled_at="2026-11-26T00:00:00.000Z",
    )  # fmt: skip


def test_each_kind_of_message_of_a_call_has_an_id_of_its_own_that_never_changes() -> None:
    def ids() -> list[str]:
        return [
            events.completed_message_id("c", 1),
            events.completed_message_id("c", 2),
            events.stale_message_id("c", 1),
            events.undispatched_message_id("c", 1),
            events.requested_message_id("c"),
            events.usage_event_id("c"),
        ]

    assert ids() == ids()
    assert len(set(ids())) == len(ids())


def test_same_call_gives_the_same_cloud_event() -> None:
    data = recorded()
    assert usage_event(data) == usage_event(data)
    event = usage_event(data)
    assert (event.id, event.subject, event.time) == (f"ue_{data.call_id}", "accounts/did:abt:a", data.settled_at)


@given(st.lists(st.integers(1, 2**63 - 1), min_size=2, max_size=5))
def test_sequences_sort_as_text(numbers: list[int]) -> None:
    texts = {number: usage_event(recorded(number)).sequence for number in numbers}
    assert sorted(numbers) == sorted(numbers, key=lambda number: texts[number])


def test_cloud_event_is_complete_json_with_its_required_attributes() -> None:
    document = msgspec.json.decode(msgspec.json.encode(usage_event(recorded())))
    required = {"specversion", "id", "source", "type"}
    assert required <= document.keys()
    assert document["type"] == USAGE_RECORDED_TYPE == f"io.aigne.{usage_recorded(CallKind.CHAT).removesuffix('.chat')}"
    assert msgspec.json.decode(msgspec.json.encode(document), type=UsageEvent).data.usage == Usage(1, 2)


@given(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)
def test_total_is_the_sum_of_parts_that_never_overlap(a: int, b: int, c: int, d: int, e: int) -> None:
    assert Usage(a, b, c, d, e).total_tokens == a + b + c + d + e


def test_time_of_a_fact_is_utc_with_milliseconds() -> None:
    text = events.now_text()
    assert text.endswith("Z")
    assert len(text) == len("2026-11-26T00:00:00.000Z")
    assert datetime.fromisoformat(text).utcoffset() is not None
