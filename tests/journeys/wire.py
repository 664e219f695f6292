"""OpenAI's wire format as a provider writes it, for answers that a test words itself."""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def event(value: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    """One chunk of a stream with one choice."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event({**_head("chat.completion.chunk"), "choices": [choice], **more})


def usage_chunk(usage: object = USAGE) -> bytes:
    """The chunk that carries the usage."""
    return event({**_head("chat.completion.chunk"), "choices": [], "usage": usage})


def answer(message: dict[str, Any], finish_reason: str = "stop", **more: Any) -> bytes:
    """A whole answer with one choice."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return json.dumps({**_head("chat.completion"), "choices": [choice], "usage": USAGE, **more}).encode()


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-journey", "object": kind, "created": 1_700_000_000, "model": "gpt-4o-2024-08-06"}
