"""Anthropic's message, whole: as a chat completion in OpenAI's form."""

from typing import Any, Final, NamedTuple

import msgspec

from contracts.errors import ErrorCode, HubError
from contracts.events import Outcome
from contracts.usage import TOKENS_MAX, Usage, UsageSource
from provider_router.adapters import chat_form, errors
from provider_router.adapters.adapter import Ending

_ENCODER: Final = msgspec.json.Encoder()


class OutputDetails(msgspec.Struct):
    """Part of `GivenUsage`."""

    thinking_tokens: Any = None


class CacheCreation(msgspec.Struct):
    """Part of `GivenUsage`: what `cache_creation_input_tokens` consists of."""

    ephemeral_5m_input_tokens: Any = None
    ephemeral_1h_input_tokens: Any = None


class GivenUsage(msgspec.Struct):
    """Usage as Anthropic has it: cached tokens are apart from `input_tokens`, thinking is inside `output_tokens`."""

    input_tokens: Any = None
    output_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_creation: CacheCreation | None = None
    output_tokens_details: OutputDetails | None = None


class Block(msgspec.Struct):
    """A content block, or the beginning of one."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class Message(msgspec.Struct):
    """A whole answer, or the beginning of a streamed one."""

    id: str
    model: str
    type: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    usage: GivenUsage | None = None


_MESSAGE: Final = msgspec.json.Decoder(Message)


class Stop(NamedTuple):
    """What a stop reason means."""

    finish_reason: str
    """In OpenAI's words, for the client."""
    outcome: Outcome


def stop(reason: str) -> Stop:
    """Anthropic's stop reason in OpenAI's words."""
    match reason:
        case "end_turn" | "stop_sequence":
            return Stop("stop", Outcome.STOP)
        case "max_tokens" | "model_context_window_exceeded":
            return Stop("length", Outcome.LENGTH)
        case "tool_use":
            return Stop("tool_calls", Outcome.TOOL_CALLS)
        case "refusal":
            return Stop("content_filter", Outcome.CONTENT_FILTER)
        case _:  # pause_turn, which needs a server's tool, and what may come later
            return Stop("stop", Outcome.OTHER)


def usage(given: GivenUsage | None) -> Usage | None:
    """Usage with parts that never overlap; None = it has no usable figures."""
    if given is None:
        return None
    counts = [
        chat_form.count(0 if value is None and optional else value)
        for value, optional in (
            (given.input_tokens, False),
            (given.output_tokens, False),
            (given.cache_read_input_tokens, True),
            (given.cache_creation_input_tokens, True),
        )
    ]
    figures = [count for count in counts if count is not None]
    if len(figures) < len(counts):
        return None
    details = given.output_tokens_details
    thinking = chat_form.count(details.thinking_tokens) if details and details.thinking_tokens is not None else 0
    bounded = [min(figure, TOKENS_MAX) for figure in figures]
    believed = bounded == figures and thinking is not None and thinking <= bounded[1]
    reasoning = min(thinking or 0, bounded[1])
    for_an_hour = _written_for_an_hour(given.cache_creation)
    believed = believed and for_an_hour is not None and for_an_hour <= bounded[3]
    hour = min(for_an_hour or 0, bounded[3])
    return Usage(
        input_tokens=bounded[0],
        output_tokens=bounded[1] - reasoning,
        cache_read_tokens=bounded[2],
        cache_write_tokens=bounded[3] - hour,
        reasoning_tokens=reasoning,
        source=UsageSource.REPORTED if believed else UsageSource.ESTIMATED,
        cache_write_1h_tokens=hour,
    )


def _written_for_an_hour(creation: CacheCreation | None) -> int | None:
    """Tokens written to the cache for an hour, of all that were written; None = the figure cannot be believed."""
    if creation is None or creation.ephemeral_1h_input_tokens is None:
        return 0
    return chat_form.count(creation.ephemeral_1h_input_tokens)


def answer(body: bytes, created: int) -> Ending:
    """A whole answer as a chat completion.

    Raises:
        HubError: `upstream_broken`, when it is no message.
    """
    try:
        message = _MESSAGE.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise errors.broken("The provider's answer is not the JSON of a message") from error
    if message.type != "message" or message.stop_reason is None:
        raise errors.broken("The provider's answer is no complete message")
    stopped = stop(message.stop_reason)
    used = usage(message.usage)
    said: dict[str, Any] = {
        "id": message.id,
        "object": "chat.completion",
        "created": created,
        "model": message.model,
        "choices": [
            {
                "index": 0,
                "message": _message(message.content),
                "logprobs": None,
                "finish_reason": stopped.finish_reason,
            }
        ],
    }
    if used is not None:
        said["usage"] = msgspec.Raw(chat_form.usage_object(used))
    held = _ENCODER.encode(said)
    return Ending(held, None if used is None else len(held) - 2, used, message.stop_reason, stopped.outcome)


def _message(content: list[Block]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        match block.type:
            case "text":
                texts.append(block.text)
            case "thinking":
                thoughts.append(block.thinking)
            case "redacted_thinking":
                pass  # encrypted, nobody but Anthropic can read it
            case "tool_use":
                function = {"name": block.name, "arguments": bytes(block.input).decode()}
                calls.append({"id": block.id, "type": "function", "function": function})
            case _:
                raise unknown_block(block.type)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) if texts or not calls else None,
        "refusal": None,
    }
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def unknown_block(kind: str) -> HubError:
    """An answer that has what OpenAI's form cannot carry, and that was not asked for."""
    return HubError(
        ErrorCode.UPSTREAM_BROKEN, f"The provider answered with a block of type {errors.scrub(kind[:60])!r}."
    )
