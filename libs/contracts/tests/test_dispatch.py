"""Dispatch messages: header and body unharmed, anything else refused."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import dispatch
from contracts.dispatch import Cancel, DispatchError, DispatchHeader
from contracts.errors import ErrorCode
from contracts.ids import new_call_id
from contracts.usage import Candidate, Rates

TEXT = st.text(max_size=20)
RATES = st.builds(Rates, input=TEXT, output=TEXT, cache_read=st.none() | TEXT, request=TEXT)
CANDIDATES = st.lists(st.builds(Candidate, provider=TEXT, model=TEXT, rates=RATES, rate_id=TEXT), max_size=3).map(tuple)
HEADERS = st.builds(
    DispatchHeader,
    call_id=TEXT,
    epoch=st.integers(1, 9),
    number=st.integers(0, 2**32 - 1),
    gateway=TEXT,
    account=TEXT,
    kind=TEXT,
    dialect=TEXT,
    stream=st.booleans(),
    deadline_ms=st.integers(0, 2**48),
    candidates=CANDIDATES,
    hold=TEXT,
    traceparent=TEXT,
    include_usage=st.booleans(),
    more_parts=st.integers(0, 8),
    kept=st.booleans(),
    ttl_ms=st.integers(0, 2**40),
)


@given(HEADERS, st.binary(max_size=200))
def test_header_and_body_come_out_as_they_went_in(header: DispatchHeader, body: bytes) -> None:
    assert dispatch.unpack(dispatch.pack(header, body)) == (header, body)


@given(HEADERS)
def test_message_cut_inside_its_header_is_refused(header: DispatchHeader) -> None:
    message = dispatch.pack(header, b"")
    for cut in range(len(message)):
        with pytest.raises(DispatchError):
            dispatch.unpack(message[:cut])


@given(st.binary(max_size=100))
def test_any_other_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(DispatchError):
        dispatch.unpack(struct.pack(">I", len(noise)) + noise)
    with pytest.raises(DispatchError):
        dispatch.unpack(struct.pack(">I", len(noise) + 1) + noise)


def test_field_from_a_later_release_is_ignored() -> None:
    known = DispatchHeader(
        call_id=new_call_id(), epoch=1, number=7, gateway="g", account="a", kind="chat", dialect="openai",
        stream=True, deadline_ms=1, candidates=(), hold="0",
    )  # fmt: skip
    later = msgspec.json.encode({**msgspec.to_builtins(known), "mood": "sunny"})
    assert dispatch.unpack(struct.pack(">I", len(later)) + later + b"{}") == (known, b"{}")


@given(st.integers(1, 2**32 - 1), st.binary(max_size=100))
def test_part_of_a_body_keeps_call_number_and_bytes(number: int, part: bytes) -> None:
    call_id = new_call_id()
    message = dispatch.pack_part(call_id, number, part)
    assert dispatch.unpack_part(message) == (call_id, number, part)
    for cut in range(len(message) - len(part)):
        with pytest.raises(DispatchError):
            dispatch.unpack_part(message[:cut])


def test_cancel_without_a_reason_means_that_the_client_left() -> None:
    cancel = msgspec.json.decode(b'{"gateway":"g","call_ids":["c"]}', type=Cancel)
    assert cancel.reason == ErrorCode.CLIENT_CANCELLED


def test_layout_on_the_wire_is_fixed() -> None:
    header = DispatchHeader("c", 1, 2, "g", "a", "chat", "openai", stream=False, deadline_ms=3, candidates=(), hold="0")
    text = (
        b'{"call_id":"c","epoch":1,"number":2,"gateway":"g","account":"a","kind":"chat","dialect":"openai",'
        b'"stream":false,"deadline_ms":3,"candidates":[],"hold":"0"}'
    )
    assert dispatch.pack(header, b"{}") == struct.pack(">I", len(text)) + text + b"{}"
    assert dispatch.pack_part("c" * 36, 1, b"x") == b"c" * 36 + bytes.fromhex("00000001") + b"x"
