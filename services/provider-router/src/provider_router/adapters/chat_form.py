"""OpenAI's form, in which dialects and adapters meet: usage, finish reasons and chunks, read and written."""

import math
from typing import Any, Final

import msgspec

from contracts.events import Outcome
from contracts.usage import TOKENS_MAX, Usage, UsageSource
from provider_router import json_body, sse
from provider_router.adapters.adapter import Ending

_ENCODER: Final = msgspec.json.Encoder()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


_USAGE: Final = msgspec.json.Decoder(_Usage)


def outcome(finish_reason: str) -> Outcome:
    """How a call ended, by OpenAI's finish reason."""
    match finish_reason:
        case "stop":
            return Outcome.STOP
        case "length":
            return Outcome.LENGTH
        case "content_filter":
            return Outcome.CONTENT_FILTER
        case "tool_calls" | "function_call":
            return Outcome.TOOL_CALLS
        case _:
            return Outcome.OTHER


def count(value: object) -> int | None:
    """A token count as a whole number ≥ 0, not yet bounded; None = it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and value >= 0:
        return int(value)
    return None


def _detail(details: object, name: str) -> tuple[int, bool]:
    """A detail's count, and whether it can be believed."""
    if details is None:
        return 0, True
    value = details.get(name) if isinstance(details, dict) else details
    if value is None:
        return 0, True
    number = count(value)
    return (0, False) if number is None else (number, True)


def read_usage(raw: bytes) -> Usage | None:
    """Usage from OpenAI's usage object, its parts made disjoint; None = it has no usable figures.

    What a cache read and wrote is taken out of the prompt's tokens. Reasoning tokens are taken out of the
    completion's, unless the total says that the provider had not counted them there. Figures that contradict each
    other or are beyond `TOKENS_MAX` are bounded, and the usage is marked `estimated`.
    """
    try:
        given = _USAGE.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    prompt, completion = count(given.prompt_tokens), count(given.completion_tokens)
    if prompt is None or completion is None:
        return None
    cached, cached_believed = _detail(given.prompt_tokens_details, "cached_tokens")
    details = given.prompt_tokens_details
    written, written_believed = _detail(details, "cache_write_tokens") if isinstance(details, dict) else (0, True)
    reasoning, reasoning_believed = _detail(given.completion_tokens_details, "reasoning_tokens")
    if reasoning and count(given.total_tokens) == prompt + completion + reasoning:
        completion += reasoning
    believed = cached_believed and written_believed and reasoning_believed
    believed = believed and cached + written <= prompt <= TOKENS_MAX and reasoning <= completion <= TOKENS_MAX
    prompt, completion = min(prompt, TOKENS_MAX), min(completion, TOKENS_MAX)
    cached, reasoning = min(cached, prompt), min(reasoning, completion)
    written = min(written, prompt - cached)
    return Usage(
        input_tokens=prompt - cached - written,
        output_tokens=completion - reasoning,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        source=UsageSource.REPORTED if believed else UsageSource.ESTIMATED,
    )


def usage_object(usage: Usage) -> bytes:
    """OpenAI's usage object: the prompt includes what the cache read and wrote, the completion the reasoning."""
    prompt = usage.prompt_tokens
    completion = usage.output_tokens + usage.reasoning_tokens
    prompt_details = {"cached_tokens": usage.cache_read_tokens}
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    if written:
        prompt_details["cache_write_tokens"] = written
    return _ENCODER.encode(
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": prompt_details,
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        }
    )


class ChunkHead(msgspec.Struct, omit_defaults=True):
    """What all chunks of one stream have in common; values keep the provider's bytes."""

    id: msgspec.Raw = msgspec.Raw(b'""')
    created: msgspec.Raw = msgspec.Raw(b"0")
    model: msgspec.Raw = msgspec.Raw(b'""')

    def chunk(self, choices: bytes, usage: bytes | None = None) -> bytes:
        """One chunk event; `usage`, if given, is its last member."""
        last = b"" if usage is None else b',"usage":' + usage
        body = b'{"id":%b,"object":"chat.completion.chunk","created":%b,"model":%b,"choices":%b%b}' % (
            bytes(self.id),
            bytes(self.created),
            bytes(self.model),
            choices,
            last,
        )
        return sse.event(body)

    def finish(self, index: int, finish_reason: str, details: str = "") -> bytes:
        """The chunk that ends one choice; `details` says what OpenAI's word for it does not."""
        choice: dict[str, object] = {"index": index, "delta": {}, "finish_reason": finish_reason}
        if details:
            choice["finish_details"] = {"type": details}
        return self.chunk(_ENCODER.encode([choice]))


USAGE_SPLICE_FROM_END: Final = 4
"""In a chunk event whose last member is the usage object: its closing brace, the chunk's, and the blank line."""


def stream_tail(held: bytes, head: ChunkHead, usage: bytes | None) -> tuple[bytes, int | None]:
    """A stream's tail: what was held, the usage chunk if there is one to send, `[DONE]`; and where to splice."""
    if usage is None:
        return held + sse.DONE, None
    before = held + head.chunk(b"[]", usage)
    return before + sse.DONE, len(before) - USAGE_SPLICE_FROM_END


def tail_with_usage(ending: Ending, head: ChunkHead, usage: Usage, *, include_usage: bool) -> Ending:
    """A stream's ending that had no usable usage, with one."""
    held, splice_at = stream_tail(
        ending.held.removesuffix(sse.DONE), head, usage_object(usage) if include_usage else None
    )
    return Ending(held, splice_at, usage, ending.finish_reason, ending.outcome)


def message_text(message: object) -> str:
    """Text of a message or a delta in OpenAI's form: content, reasoning, refusal, names and arguments of tools."""
    if not isinstance(message, dict):
        return ""
    texts = [message.get(name) for name in ("content", "reasoning_content", "reasoning", "refusal")]
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            texts += (function.get("name"), function.get("arguments"))
    content = texts[0]
    if isinstance(content, list):
        texts += [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def answer_text(body: bytes) -> str:
    """Text of a whole answer in OpenAI's form."""
    choices: Any = msgspec.json.decode(body, type=dict[str, Any]).get("choices")
    return "".join(message_text(choice.get("message")) for choice in choices if isinstance(choice, dict))


def answer_with_usage(ending: Ending, usage: Usage) -> Ending:
    """A whole answer with this usage object in place of the provider's, as the last member."""
    held, splice_at = json_body.with_object(ending.held, "usage", usage_object(usage))
    return Ending(held, splice_at, usage, ending.finish_reason, ending.outcome)
