"""What a fake provider says: OpenAI's and Anthropic's real wire formats, honest unless a test asks otherwise."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

PIECES: Final = ("Hello", " from", " the", " provider", ".")
INPUT_TOKENS: Final = 7
BEFORE_HEAD: Final = -1
"""A place for `hold_at` and `cut_at`: not even the status line goes out."""
HONEST: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. A place N means: before the Nth piece of the body is written, counted from 0.

    A streamed body has one piece per event; a JSON body has two, its halves.
    """

    pieces: tuple[str, ...] = PIECES
    """The answer's text, token by token."""
    usage: Mapping[str, Any] | None = field(default_factory=lambda: HONEST)
    """`HONEST` counts; None sends none; anything else is sent as it stands, lies too."""
    finish_reason: str | None = "stop"
    done: bool = True
    """Whether a stream says that it is over (`[DONE]`, `message_stop`)."""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    """Added to the head: `retry-after`, `location`, `set-cookie` …"""
    content_type: str | None = None
    body: bytes | None = None
    """Instead of an honest JSON answer, stream or not."""
    chunks: tuple[bytes, ...] | None = None
    """Instead of an honest stream: pieces of the body, verbatim."""
    http: tuple[bytes, ...] | None = None
    """Instead of everything: bytes of the connection, status line and all; it closes afterwards."""
    piece_delay_s: float = 0.0
    """Pause before every piece of the body."""
    head_delay_s: float = 0.0
    hold_at: int | None = None
    """Stay silent at this place until `released`; for ever, when nobody sets it."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    cut_at: int | None = None
    """End at this place, as `cut` says."""
    cut: Literal["reset", "close", "end"] = "reset"
    """RST; FIN in the middle of the body; or a body that ends properly, too early."""
    error_at: int | None = None
    """Send `error` instead of this piece, and end."""
    error: Mapping[str, Any] = field(
        default_factory=lambda: {"message": "The engine is overloaded.", "type": "server_error", "code": "overloaded"}
    )


def refusal(
    status: int, message: str = "Refused.", *, code: str = "refused", kind: str = "provider_error", **headers: str
) -> Reply:
    """An error answer in OpenAI's shape; underscores in header names become hyphens."""
    error = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status=status, headers=named, body=json.dumps(error).encode())


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply depends on."""

    grammar: Literal["openai", "anthropic"]
    model: str
    stream: bool
    include_usage: bool
    choices: int


def read(path: str, body: bytes) -> Asked:
    """What a request asks for; one that is no JSON object asks for a plain answer."""
    try:
        wanted = json.loads(body)
    except ValueError:
        wanted = {}
    wanted = wanted if isinstance(wanted, dict) else {}
    options = wanted.get("stream_options")
    return Asked(
        grammar="anthropic" if path.endswith("/messages") else "openai",
        model=str(wanted.get("model", "")),
        stream=wanted.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=wanted.get("n") or 1,
    )


def is_streamed(reply: Reply, asked: Asked) -> bool:
    """Whether the body comes as events."""
    return reply.body is None and (reply.chunks is not None or asked.stream)


def content_type(reply: Reply, asked: Asked) -> str:
    """Content type of an answer."""
    if reply.content_type is not None:
        return reply.content_type
    return "text/event-stream" if is_streamed(reply, asked) else "application/json"


def pieces(reply: Reply, asked: Asked) -> list[bytes]:
    """The body in the pieces that are written one by one."""
    if reply.body is None and is_streamed(reply, asked):
        if reply.chunks is not None:
            whole = list(reply.chunks)
        else:
            whole = _openai_events(reply, asked) if asked.grammar == "openai" else _anthropic_events(reply, asked)
        if reply.error_at is not None:
            whole = [*whole[: reply.error_at], _error_event(reply, asked)]
        return whole
    body = reply.body
    if body is None:
        body = _json(_openai_answer(reply, asked) if asked.grammar == "openai" else _anthropic_answer(reply, asked))
    half = len(body) // 2
    return [body[:half], body[half:]]


def _openai_usage(reply: Reply, asked: Asked) -> Mapping[str, Any] | None:
    if reply.usage != HONEST:
        return reply.usage
    output = len(reply.pieces) * asked.choices
    return {"prompt_tokens": INPUT_TOKENS, "completion_tokens": output, "total_tokens": INPUT_TOKENS + output}


def _openai_answer(reply: Reply, asked: Asked) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(reply.pieces), "refusal": None}
    choice = {"message": message, "logprobs": None, "finish_reason": reply.finish_reason}
    answer = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": asked.model,
        "choices": [{"index": index, **choice} for index in range(asked.choices)],
    }
    usage = _openai_usage(reply, asked)
    return answer if usage is None else {**answer, "usage": usage}


def _openai_events(reply: Reply, asked: Asked) -> list[bytes]:
    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_700_000_000}
        return b"data: " + _json({**head, "model": asked.model, "choices": choices, **more}) + b"\n\n"

    def delta(index: int, content: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": content, "logprobs": None, "finish_reason": finish_reason}
        return event([choice], **({"usage": None} if asked.include_usage else {}))

    every = range(asked.choices)
    events = [delta(index, {"role": "assistant", "content": ""}) for index in every]
    events += [delta(index, {"content": piece}) for piece in reply.pieces for index in every]
    if reply.finish_reason is not None:
        events += [delta(index, {}, reply.finish_reason) for index in every]
    usage = _openai_usage(reply, asked)
    if asked.include_usage and usage is not None:
        events.append(event([], usage=usage))
    return [*events, b"data: [DONE]\n\n"] if reply.done else events


def _anthropic_usage(reply: Reply) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in `message_start`, and what in `message_delta`."""
    if reply.usage is None:
        return {}, {}
    if reply.usage != HONEST:
        return {"usage": reply.usage}, {"usage": reply.usage}
    counts = {"input_tokens": INPUT_TOKENS, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"usage": {**counts, "output_tokens": 1}}, {"usage": {"output_tokens": len(reply.pieces)}}


def _anthropic_stop(reply: Reply) -> str | None:
    return {"stop": "end_turn", "length": "max_tokens"}.get(reply.finish_reason or "", reply.finish_reason)


def _anthropic_answer(reply: Reply, asked: Asked) -> dict[str, Any]:
    begin, end = _anthropic_usage(reply)
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [{"type": "text", "text": "".join(reply.pieces)}],
        "stop_reason": _anthropic_stop(reply),
        "stop_sequence": None,
        **({"usage": {**begin["usage"], **end["usage"]}} if begin else {}),
    }


def _anthropic_events(reply: Reply, asked: Asked) -> list[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + _json({"type": kind, **fields}) + b"\n\n"

    begin, end = _anthropic_usage(reply)
    message = {"id": "msg_fake", "type": "message", "role": "assistant", "model": asked.model, "content": []}
    start = event("message_start", message={**message, "stop_reason": None, "stop_sequence": None, **begin})
    events = [start, event("content_block_start", index=0, content_block={"type": "text", "text": ""})]
    events += [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece}) for piece in reply.pieces
    ]
    events.append(event("content_block_stop", index=0))
    if reply.finish_reason is not None:
        stop = {"stop_reason": _anthropic_stop(reply), "stop_sequence": None}
        events.append(event("message_delta", delta=stop, **end))
    return [*events, event("message_stop")] if reply.done else events


def _error_event(reply: Reply, asked: Asked) -> bytes:
    if asked.grammar == "openai":
        return b"data: " + _json({"error": dict(reply.error)}) + b"\n\n"
    return b"event: error\ndata: " + _json({"type": "error", "error": dict(reply.error)}) + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
