"""What the mock upstream says, and how its answer is recognised as whole at the other end.

Everything is rendered once. Each piece of text carries `MARK`, so whole answers are counted
whatever a gateway between does to spacing, order of fields or the cut of chunks.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

MARK: Final = b"ember"
"""Occurs once in every piece of text of a stream, and nowhere else in an answer or request."""

JSON_PIECES: Final = 8
"""How many times `MARK` occurs in a JSON answer."""

DONE: Final = b"data: [DONE]"
STREAM_END: Final = b"0\r\n\r\n"

_ID: Final = "chatcmpl-BxQ7vT2mK9sLw4RzNc1PdHfGj0Ya8"
_CREATED: Final = 1_780_000_000
_FINGERPRINT: Final = "fp_4c2851f862"
_PROMPT_TOKENS: Final = 57
_TAIL_BYTES: Final = 2_048


@dataclass(frozen=True)
class StreamScript:
    """One stream as HTTP chunks.

    Attributes:
        chunks: one HTTP chunk per `chat.completion.chunk`; the last has the `finish_reason`.
        tail: HTTP chunks after it: the usage, when asked for, and `[DONE]` with the body's end.
    """

    chunks: tuple[bytes, ...]
    tail: tuple[bytes, ...]


def pieces_of_stream(chunks: int) -> int:
    """Pieces of text in a stream of `chunks`: the first only names the role, the last the end."""
    return chunks - 2


def json_answer(model: str) -> bytes:
    """Render a `chat.completion` of about 700 bytes."""
    text = " ".join(f"{MARK.decode()}{n} of a fire that was lit" for n in range(JSON_PIECES))
    return msgspec.json.encode(
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": text,
                        "refusal": None,
                        "annotations": [],
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(completion_tokens=64),
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
    )


@lru_cache(maxsize=64)
def stream_script(model: str, chunks: int, include_usage: bool) -> StreamScript:
    """Render a stream of `chunks` ≥ 3 events, plus the usage event if asked for, plus `[DONE]`."""
    events = [_chunk(model, {"role": "assistant", "content": "", "refusal": None}, None)]
    events += [_chunk(model, {"content": f" {MARK.decode()}{n}"}, None) for n in range(pieces_of_stream(chunks))]
    events.append(_chunk(model, {}, "stop"))
    tail = [DONE + b"\n\n"]
    if include_usage:
        tail.insert(0, _event(_envelope(model, [], _usage(pieces_of_stream(chunks)))))
    framed_tail = [http_chunk(event) for event in tail]
    framed_tail[-1] += STREAM_END
    return StreamScript(tuple(http_chunk(event) for event in events), tuple(framed_tail))


def http_chunk(data: bytes) -> bytes:
    """Frame `data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def question(model: str, *, stream: bool) -> bytes:
    """Render the request body that the load generator sends, about 500 bytes."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a terse assistant that answers in one line."},
            {
                "role": "user",
                "content": "Tell me in a few words what happens to a fire when nobody looks after "
                "it for an hour, then for a night, and what is left of it in the morning. "
                "Leave out the physics, I only want to know what I would see and feel.",
            },
        ],
        "max_tokens": 256,
        "temperature": 0.7,
    }
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)


def fault_of(status: int, body: bytes, *, stream: bool, pieces: int) -> str | None:
    """Say what is wrong with an answer, or None if it is whole.

    Args:
        status: HTTP status of the answer.
        body: its whole body.
        stream: whether a stream was asked for.
        pieces: how many times `MARK` must occur.
    """
    if status != 200:
        return f"HTTP {status}"
    found = body.count(MARK)
    if stream:
        tail = body[-_TAIL_BYTES:]
        if b'"error"' in tail:
            return "error event"
        if not tail.rstrip().endswith(b"[DONE]"):
            return "no [DONE]"
    elif b'"choices"' not in body:
        return "no choices"
    if found != pieces:
        return "pieces lost" if found < pieces else "pieces repeated"
    return None


def has_credits(body: bytes) -> bool:
    """Whether the end of an answer tells what it cost."""
    return b'"credits' in body[-_TAIL_BYTES:]


def _chunk(model: str, delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event(_envelope(model, [choice], None))


def _envelope(model: str, choices: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": _ID,
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
        "choices": choices,
        "usage": usage,
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _usage(completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": _PROMPT_TOKENS + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
