"""Anthropic's stream as chat completion chunks."""

from typing import Any, Final

import msgspec

from contracts.errors import ErrorCode, HubError
from contracts.usage import Usage
from provider_router import sse
from provider_router.adapters import chat_form, errors
from provider_router.adapters.adapter import Ending
from provider_router.adapters.anthropic import answer
from provider_router.adapters.anthropic.answer import Block, GivenUsage, Message

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest stream that is relayed."""
_ENCODER: Final = msgspec.json.Encoder()


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    message: Message | None = None
    content_block: Block | None = None
    delta: _Delta = msgspec.field(default_factory=_Delta)
    usage: GivenUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_EVENT: Final = msgspec.json.Decoder(_Event)


class MessagesTranslation:
    """One stream; see `Translation`.

    Args:
        include_usage: the client asked for the usage chunk.
        created: Unix seconds for the client's `created`.
    """

    def __init__(self, *, include_usage: bool, created: int) -> None:
        self._include_usage = include_usage
        self._head = chat_form.ChunkHead(created=msgspec.Raw(b"%d" % created))
        self._decoder = sse.EventDecoder()
        self._bytes = 0
        self._texts: list[str] = []
        self._usage: GivenUsage | None = None
        self._stop_reason: str | None = None
        self._done = False
        self._calls = 0
        self._in_call = False
        self._arguments_came = False

    @property
    def complete(self) -> bool:
        """Whether `message_stop` has come."""
        return self._done

    def feed(self, data: bytes) -> bytes:
        """Chunks for the client; see `Translation`."""
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            raise errors.broken(f"The provider's stream is longer than {ANSWER_BYTES_MAX} bytes")
        try:
            events = self._decoder.feed(data)
        except sse.SseError as error:
            raise errors.broken("The provider's stream is broken") from error
        return b"".join(self._event(data) for _, data in events if not self._done)

    def _event(self, data: bytes) -> bytes:
        try:
            event = _EVENT.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise errors.broken("The provider's stream has an event that is none of a message") from error
        match event.type:
            case "message_start":
                return self._start(event.message)
            case "content_block_start":
                return self._block(event.content_block)
            case "content_block_delta":
                return self._delta(event.delta)
            case "content_block_stop":
                return self._block_end()
            case "message_delta":
                self._stop_reason = event.delta.stop_reason or self._stop_reason
                self._count(event.usage)
            case "message_stop":
                self._done = True
            case "error":
                raise stream_error(event.error)
            case _:
                pass  # ping, and kinds to come, which Anthropic asks clients to pass over
        return b""

    def _start(self, message: Message | None) -> bytes:
        if message is None:
            raise errors.broken("The provider's stream begins without a message")
        self._head.id = msgspec.Raw(_ENCODER.encode(message.id))
        self._head.model = msgspec.Raw(_ENCODER.encode(message.model))
        self._count(message.usage)
        return self._chunk({"role": "assistant", "content": ""})

    def _block(self, block: Block | None) -> bytes:
        kind = block.type if block is not None else "none"
        match block:
            case Block(type="text", text=text):
                return self._text("content", text)
            case Block(type="thinking", thinking=text):
                return self._text("reasoning_content", text)
            case Block(type="redacted_thinking"):
                return b""
            case Block(type="tool_use"):
                self._in_call = True
                self._arguments_came = False
                self._calls += 1
                self._texts.append(block.name)
                call = {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": ""}}
                return self._call(call)
            case _:
                raise answer.unknown_block(kind)

    def _delta(self, delta: _Delta) -> bytes:
        match delta.type:
            case "text_delta":
                return self._text("content", delta.text)
            case "thinking_delta":
                return self._text("reasoning_content", delta.thinking)
            case "input_json_delta":
                return self._arguments(delta.partial_json)
            case _:
                return b""  # signatures and citations, which OpenAI's form has no place for

    def _block_end(self) -> bytes:
        in_call, self._in_call = self._in_call, False
        # Anthropic sends no piece for an empty input, OpenAI's clients parse what they have put together.
        return self._arguments("{}") if in_call and not self._arguments_came else b""

    def _text(self, field: str, text: str) -> bytes:
        if not text:
            return b""
        self._texts.append(text)
        return self._chunk({field: text})

    def _arguments(self, text: str) -> bytes:
        if not text:
            return b""
        self._arguments_came = True
        self._texts.append(text)
        return self._call({"function": {"arguments": text}})

    def _call(self, call: dict[str, Any]) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls - 1, **call}]})

    def _chunk(self, delta: dict[str, Any]) -> bytes:
        return self._head.chunk(_ENCODER.encode([{"index": 0, "delta": delta, "finish_reason": None}]))

    def _count(self, given: GivenUsage | None) -> None:
        """Counts are cumulative: what comes later replaces what came before."""
        if given is None:
            return
        if self._usage is None:
            self._usage = given
            return
        for name in given.__struct_fields__:
            value = getattr(given, name)
            if value is not None:
                setattr(self._usage, name, value)

    def end(self) -> Ending:
        """The tail; see `Translation`."""
        if not self._done and self._decoder.inside:
            raise errors.broken("The provider's stream was cut off inside an event")
        if self._stop_reason is None:
            raise errors.broken("The provider's stream ended without a stop reason")
        stopped = answer.stop(self._stop_reason)
        usage = self.reported()
        raw = chat_form.usage_object(usage) if usage is not None and self._include_usage else None
        held, splice_at = chat_form.stream_tail(self._head.finish(0, stopped.finish_reason), self._head, raw)
        return Ending(held, splice_at, usage, self._stop_reason, stopped.outcome)

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """An ending without usage, with one; see `Translation`."""
        return chat_form.tail_with_usage(ending, self._head, usage, include_usage=self._include_usage)

    def cut(self, finish_reason: str, details: str = "") -> bytes:
        """An early but proper end; see `Translation`."""
        return self._head.finish(0, finish_reason, details) + sse.DONE

    def delivered_text(self) -> str:
        """Text relayed so far; see `Translation`."""
        return "".join(self._texts)

    def reported(self) -> Usage | None:
        """Usage that has come so far; see `Translation`."""
        return answer.usage(self._usage)


def stream_error(raw: msgspec.Raw) -> HubError:
    """An `error` event as what it would have been as a status."""
    words = errors.provider_words(msgspec.json.decode(raw))
    match words.type:
        case "overloaded_error" | "api_error":
            code = ErrorCode.UPSTREAM_UNAVAILABLE
        case "rate_limit_error":
            code = ErrorCode.UPSTREAM_RATE_LIMITED
        case "timeout_error":
            code = ErrorCode.UPSTREAM_TIMEOUT
        case "authentication_error" | "permission_error":
            # Such texts may quote the key.
            return HubError(
                ErrorCode.UPSTREAM_AUTHENTICATION,
                "The provider refused the hub's credential.",
                provider_type=words.type,
            )
        case _:
            code = ErrorCode.UPSTREAM_BROKEN
    return HubError(
        code,
        f"The provider reported an error in mid-stream: {words.message}",
        provider_code=words.code,
        provider_type=words.type,
    )
