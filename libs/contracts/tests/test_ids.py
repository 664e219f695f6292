"""Identifiers: UUIDv7 that sort by time, and never collide in practice."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids

MILLISECONDS = st.integers(0, 2**48 - 1)


@given(MILLISECONDS)
def test_call_id_is_a_version_7_uuid_that_carries_its_time(now_ms: int) -> None:
    call_id = ids.new_call_id(now_ms)
    parsed = uuid.UUID(call_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert str(parsed) == call_id
    assert ids.call_time_ms(call_id) == now_ms
    assert ids.is_call_id(call_id)


@given(MILLISECONDS, MILLISECONDS)
def test_ids_sort_as_text_by_time(one: int, other: int) -> None:
    if one != other:
        assert (ids.new_call_id(one) < ids.new_call_id(other)) == (one < other)


@given(st.integers(0, 2**48 - 2))
def test_bounds_of_a_millisecond_hold_its_ids(now_ms: int) -> None:
    assert ids.first_call_id_at(now_ms) <= ids.new_call_id(now_ms) < ids.first_call_id_at(now_ms + 1)


def test_call_id_takes_the_clock_when_no_time_is_given() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= ids.call_time_ms(ids.new_call_id()) <= time.time_ns() // 1_000_000


def test_ids_of_one_millisecond_differ() -> None:
    assert len({ids.new_call_id(5) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 36,
        str(uuid.UUID(int=0)),
        "01890A5D-AC96-774B-BCCE-B302099A8057",
        "01890a5d-ac96-474b-bcce-b302099a8057",
        "01890a5d-ac96-774b-7cce-b302099a8057",
        "01890a5dac96774bbcceb302099a8057",
        "01890a5d-ac96-774b-bcce-b302099a805g",
    ],
)
def test_other_text_is_no_call_id(text: str) -> None:
    assert not ids.is_call_id(text)


@given(st.text(max_size=40))
def test_what_passes_for_a_call_id_is_a_uuid(text: str) -> None:
    if ids.is_call_id(text):
        assert uuid.UUID(text).version == 7


def test_time_of_a_text_that_is_no_uuid_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ids.call_time_ms("not-a-uuid")


def test_process_id_names_its_service_and_has_no_dot() -> None:
    process = ids.new_process_id("provider-router")
    assert process.startswith("provider-router-")
    assert not set(process) & set(".*> ")
    assert process != ids.new_process_id("provider-router")


def test_trace_and_span_ids_have_their_w3c_lengths() -> None:
    assert len(ids.new_trace_id()) == 32
    assert len(ids.new_span_id()) == 16
