"""The template of a stream's events against the plain search, on events as OpenAI and others write them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_router.adapters.plain_events import PlainEvents, searched

TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"finish_reason":"stop"', '"usage":{}', '"error"', "]}\n\ndata: ", '}],"usage":null}', ',"obfuscation":"']
)


def event(
    text: str,
    *,
    finish: str | None = None,
    usage: object = None,
    padding: str | None = None,
    ident: str = "chatcmpl-1",
    error: object = None,
) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    chunk = {"id": ident, "object": "chat.completion.chunk", "model": "m", "choices": [choice], "usage": usage}
    if error is not None:
        chunk = {"error": error, **chunk}
    if padding is not None:
        chunk["obfuscation"] = padding
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


PLAIN = st.builds(event, TEXTS, padding=st.none() | st.text("aZ09", max_size=6), ident=st.sampled_from(["a", "b"]))
TO_READ = st.one_of(
    st.builds(lambda text: b"event: error\n" + event(text, error={"message": "gone"}), TEXTS),
    st.builds(event, TEXTS, finish=st.sampled_from(["stop", ""]), padding=st.none() | st.just("x")),
    st.builds(event, TEXTS, usage=st.just({"prompt_tokens": 1}), padding=st.none() | st.just("x")),
    st.builds(event, TEXTS, error=st.just({"message": "gone"})),
    st.just(b"data: [DONE]\n\n"),
)
OTHER = st.sampled_from(
    [
        b": a comment\n\n",
        b": a comment in front\n" + event("x"),
        b"\n\n",
        b'data: {"choices": [ {"finish_reason" : null} ]}\n\n',
    ]
)


@given(st.lists(st.lists(PLAIN | OTHER, min_size=1, max_size=6), min_size=1, max_size=4), st.lists(TO_READ, max_size=2))
def test_what_the_template_passes_is_what_a_search_passes(blocks: list[list[bytes]], last: list[bytes]) -> None:
    plain = PlainEvents()
    for events in [*blocks[:-1], [*blocks[-1], *last]]:
        block = b"".join(events)
        assert plain.until(block) == searched(block)


@pytest.mark.parametrize("padding", [None, "a1", ""])
def test_the_end_of_a_stream_is_found_behind_many_events_like_the_first(padding: str | None) -> None:
    events = [event(f"word {n}", padding=padding and padding * (n % 5)) for n in range(50)]
    end = event("", finish="stop", padding=padding) + event("", usage={"prompt_tokens": 1}, padding=padding)
    block = b"".join(events)
    assert PlainEvents().until(block + end) == len(block)


def test_a_usage_hidden_behind_the_padding_is_found() -> None:
    plain = PlainEvents()
    assert plain.until(event("a", padding="xy")) > 0
    hiding = event("b", padding="xy").replace(b'"}\n\n', b'","usage":{"prompt_tokens":1}}\n\n')
    assert plain.until(hiding) == 0
