import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_router.sse import EventBlocks, EventDecoder, SseError, decode, split

line_ends = st.sampled_from(["\n", "\r\n", "\r"])
texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, bytes]]]:
    """A stream in some mix of line ends, and the events that it has."""
    written, events = draw(st.sampled_from(["", "\ufeff"])), []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(["", "ping", "message_start"]))
        data = draw(st.lists(texts, max_size=3))
        lines = [": note"] if draw(st.booleans()) else []
        lines += [f"event: {name}"] if name else []
        lines += [f"data: {text}" for text in data]
        line_end = draw(line_ends)
        written += "".join(line + line_end for line in [*lines, ""])
        if data:
            events.append((name or "message", "\n".join(data).encode()))
    return written.encode(), events


@given(streams(), st.data())
def test_events_come_out_whole_however_the_bytes_come_in(
    stream: tuple[bytes, list[tuple[str, bytes]]], data: st.DataObject
) -> None:
    written, events = stream
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=8)))
    decoder = EventDecoder()
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert [event for piece in pieces for event in decoder.feed(piece)] == events
    assert not decoder.inside


@given(streams())
def test_every_single_byte_apart_gives_the_same_events(stream: tuple[bytes, list[tuple[str, bytes]]]) -> None:
    written, events = stream
    decoder = EventDecoder()
    assert [event for i in range(len(written)) for event in decoder.feed(written[i : i + 1])] == events


def test_an_unclosed_event_is_none() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n\ndata: b\n") == [("message", b"a")]
    assert decoder.inside
    assert decoder.feed(b"\n") == [("message", b"b")]
    assert not decoder.inside


def test_blocks_keep_their_bytes() -> None:
    blocks = EventBlocks()
    assert blocks.feed(b': hi\n\nevent: x\ndata:  {"a":1.0}\n\ndata: y') == b': hi\n\nevent: x\ndata:  {"a":1.0}\n\n'
    assert blocks.rest == b"data: y"
    assert blocks.feed(b"\n\n\n") == b"data: y\n\n\n"


def test_an_endless_event_is_refused_in_time_linear_to_it() -> None:
    blocks = EventBlocks(event_bytes_max=1_000_000)
    for _ in range(1000):
        assert blocks.feed(b"x" * 1000) == b""
    with pytest.raises(SseError):
        blocks.feed(b"x")


def test_an_event_up_to_the_bound_passes() -> None:
    decoder = EventDecoder(event_bytes_max=100)
    assert decoder.feed(b"data: " + b"x" * 94) == []
    assert decoder.feed(b"\n\n") == [("message", b"x" * 94)]


def test_lines_without_a_colon_and_unknown_fields_are_passed_over() -> None:
    assert decode(b"data\nid: 1\nretry: 5\nfoo\n\n") == [("message", b"")]
    assert split(b"\n\n\n\na\n\nb\n\n") == [b"a", b"b"]
