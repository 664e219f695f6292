"""Numbers of events: the same in whatever pieces the bytes come, and a suffix for whoever has seen the beginning."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.event_ids import EventIds

LINES = st.lists(st.sampled_from([b"data: a", b": note", b"event: x", b"data:", b"id: 77"]), min_size=1, max_size=3)
STREAMS = st.lists(LINES.map(lambda lines: b"\n".join(lines) + b"\n\n"), max_size=12)


@given(STREAMS, st.lists(st.integers(0, 300), max_size=12))
def test_events_have_the_same_numbers_in_whatever_pieces_they_come(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(events)
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    ids = EventIds()
    out = b"".join(ids.feed(stream[start:end]) for start, end in itertools.pairwise(bounds))
    assert out == b"".join(b"%b\nid: %d\n\n" % (event[:-2], number) for number, event in enumerate(events, 1))


@given(STREAMS, st.integers(0, 20))
def test_who_has_seen_the_beginning_gets_the_rest(events: list[bytes], seen: int) -> None:
    whole, rest = EventIds(), EventIds(after=seen)
    stream = b"".join(events)
    before = EventIds().feed(b"".join(events[:seen]))
    assert before + rest.feed(stream) == whole.feed(stream)


def test_an_event_waits_for_its_end_and_blank_lines_are_no_events() -> None:
    ids = EventIds()
    assert ids.feed(b"data: a\n") == b""
    assert ids.feed(b"\n\n\ndata: b") == b"data: a\nid: 1\n\n"
    assert ids.feed(b"\n\n") == b"data: b\nid: 2\n\n"
