"""The mock upstream's HTTP: what a model's name asks for, rendered once, ready to be written."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from bench.answers import json_answer, stream_script

MODELS: Final = ("bench-json", "bench-burst", "bench-chunks", "bench-paced-50")
CHUNKS: Final = 100
_CHUNKS_MAX: Final = 100_000
_MODEL: Final = re.compile(r"(?:.*/)?bench-(?P<how>json|burst|chunks|paced-(?P<pace>\d{1,4}))(?:-(?P<chunks>\d{1,6}))?")


@dataclass(frozen=True)
class Plan:
    """How the answers of one model name are written.

    Attributes:
        one_write: the whole stream at once.
        pace_per_s: chunks a second; 0 is one chunk each turn of the event loop.
        chunks: events before usage and `[DONE]`.
    """

    one_write: bool
    pace_per_s: int
    chunks: int


@lru_cache(maxsize=256)
def plan_of(model: str) -> Plan | None:
    """Read a model name, with or without a provider's prefix; None if it is none of ours."""
    match = _MODEL.fullmatch(model)
    if match is None:
        return None
    pace = int(match["pace"] or 0)
    chunks = int(match["chunks"] or CHUNKS)
    if match["pace"] == "0" or not 3 <= chunks <= _CHUNKS_MAX:
        return None
    return Plan(one_write=match["how"] in {"json", "burst"}, pace_per_s=pace, chunks=chunks)


@lru_cache(maxsize=256)
def json_response(model: str, keep_alive: bool) -> bytes:
    """Render the whole JSON answer of a model."""
    return response(b"200 OK", json_answer(model), keep_alive=keep_alive)


@lru_cache(maxsize=256)
def stream_writes(
    model: str,
    plan: Plan,
    include_usage: bool,
    keep_alive: bool,
) -> tuple[bytes, ...]:
    """Render a stream as the writes that make it: the head goes with the first chunk."""
    script = stream_script(model, plan.chunks, include_usage)
    head = _stream_head(keep_alive=keep_alive)
    if plan.one_write:
        return (head + b"".join(script.chunks + script.tail),)
    first, *others = script.chunks
    if plan.pace_per_s:
        *between, last = others
        return (head + first, *between, last + b"".join(script.tail))
    return (head + first, *others, *script.tail)


def _stream_head(*, keep_alive: bool) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"cache-control: no-cache\r\nx-request-id: req_5d1f0a7c9e3b\r\n"
        b"openai-processing-ms: 12\r\ntransfer-encoding: chunked\r\n"
    ) + (b"\r\n" if keep_alive else b"connection: close\r\n\r\n")


def response(status: bytes, body: bytes, *, keep_alive: bool) -> bytes:
    """Render a JSON response."""
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nx-request-id: req_5d1f0a7c9e3b\r\n"
        b"openai-processing-ms: 12\r\ncontent-length: %d\r\n%b\r\n%b"
    ) % (status, len(body), b"" if keep_alive else b"connection: close\r\n", body)


def error(status: bytes, message: str, *, keep_alive: bool) -> bytes:
    """Render an error in the shape of OpenAI."""
    problem = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return response(status, msgspec.json.encode({"error": problem}), keep_alive=keep_alive)


def models() -> bytes:
    """Render the body of the list of models."""
    data = [{"id": m, "object": "model", "created": 1, "owned_by": "bench"} for m in MODELS]
    return msgspec.json.encode({"object": "list", "data": data})
