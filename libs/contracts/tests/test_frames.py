"""Frames: what goes in comes out, and a message that is cut anywhere is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import frames
from contracts.frames import Frame, FrameError, FrameKind

U32 = st.integers(0, 2**32 - 1)
FRAMES = st.tuples(st.sampled_from(FrameKind), U32, U32, st.binary(max_size=60))


def packed(items: list[Frame]) -> bytes:
    return b"".join(frames.pack(*frame) for frame in items)


@given(st.lists(FRAMES, max_size=8))
def test_frames_come_out_as_they_went_in(items: list[Frame]) -> None:
    assert list(frames.unpack(packed(items))) == items


@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_message_cut_at_any_byte_is_refused_unless_the_cut_is_between_frames(items: list[Frame]) -> None:
    whole = packed(items)
    borders = {len(packed(items[:count])) for count in range(len(items) + 1)}
    for cut in range(len(whole)):
        if cut in borders:
            assert list(frames.unpack(whole[:cut])) == items[: sorted(borders).index(cut)]
        else:
            with pytest.raises(FrameError):
                list(frames.unpack(whole[:cut]))


@given(st.lists(FRAMES, max_size=3), st.integers(0, 255).filter(lambda kind: kind not in set(FrameKind)))
def test_unknown_kind_is_refused_after_the_frames_before_it(items: list[Frame], kind: int) -> None:
    message = packed(items) + bytes([kind]) + packed([(FrameKind.DATA, 1, 0, b"")])[1:]
    arriving = frames.unpack(message)
    assert [next(arriving) for _ in items] == items
    with pytest.raises(FrameError):
        next(arriving)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_frame_error(message: bytes) -> None:
    try:
        items = list(frames.unpack(message))
    except FrameError:
        return
    assert packed(items) == message


@given(st.sampled_from(FrameKind), U32, U32, st.binary(max_size=60))
def test_header_and_payload_in_pieces_are_the_packed_frame(
    kind: FrameKind, number: int, sequence: int, payload: bytes
) -> None:
    assert frames.header(kind, number, sequence, len(payload)) + payload == frames.pack(kind, number, sequence, payload)
    assert len(frames.header(kind, number, sequence, 0)) == frames.HEADER_BYTES


@given(st.binary(max_size=100), st.none() | st.integers(0, frames.NO_SPLICE - 1))
def test_end_payload_keeps_held_bytes_and_splice_position(held: bytes, splice_at: int | None) -> None:
    assert frames.read_end(frames.end_payload(held, splice_at)) == (held, splice_at)


@pytest.mark.parametrize("length", range(4))
def test_end_payload_without_an_offset_is_refused(length: int) -> None:
    with pytest.raises(FrameError):
        frames.read_end(bytes(length))


def test_layout_on_the_wire_is_fixed() -> None:
    assert frames.pack(FrameKind.DATA, 0x01020304, 5, b"hi") == bytes.fromhex("03 01020304 00000005 00000002") + b"hi"
    assert frames.end_payload(b"x", 7) == bytes.fromhex("00000007") + b"x"
    assert [(kind.name, int(kind)) for kind in FrameKind] == [
        ("ACCEPTED", 1),
        ("HEAD", 2),
        ("DATA", 3),
        ("END", 4),
        ("ERROR", 5),
    ]
