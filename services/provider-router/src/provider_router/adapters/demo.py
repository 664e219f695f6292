"""The built-in provider `demo/echo`: what it answers. Pure; `demo_upstream.py` plays it in time.

Its wire format is OpenAI's, so the compatible adapter reads it like any real provider's. A member `demo` of the
request asks for behaviour, so that load and fault tests need nothing else.
"""

import re
from typing import Any, Final, Literal

import msgspec

from provider_router import sse

DEMO: Final = "demo"
"""Kind and name of the provider."""
MODEL: Final = "echo"
_ABSURD: Final = 10**15
_ENCODER: Final = msgspec.json.Encoder()


class Directives(msgspec.Struct, forbid_unknown_fields=True):
    """Member `demo` of a request: how the provider is to behave. Chunks are numbered from 0."""

    chunks: msgspec.UnsetType | int = msgspec.UNSET
    """Number of content chunks; the words are repeated or cut to it."""
    delay_ms: int = 0
    """Before each chunk but the first."""
    first_delay_ms: int = 0
    """Before the answer begins."""
    fail_at: int | None = None
    """The connection is reset in place of this chunk."""
    cut_at: int | None = None
    """The answer ends in place of this chunk, without a finish reason."""
    error_at: int | None = None
    """An error object comes in place of this chunk."""
    silent_at: int | None = None
    """Nothing comes from this chunk on; with `stall_ms` only for that long."""
    stall_ms: int = 0
    """One pause, before chunk `silent_at` or in the middle of the answer."""
    status: int = 200
    """An error status instead of an answer."""
    retry_after: int | None = None
    """`Retry-After` in seconds, beside `status`."""
    usage: Literal["honest", "none", "negative", "absurd"] = "honest"
    finish: str = "stop"


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[dict[str, Any]] | None = None


class _Request(msgspec.Struct):
    messages: list[_Message] = []
    stream: bool = False
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    demo: Directives | None = None


_REQUEST: Final = msgspec.json.Decoder(_Request)


class Echo(msgspec.Struct, frozen=True):
    """The answer to one request."""

    asked: Directives
    words: tuple[str, ...]
    finish: str
    stream: bool
    choices: int
    prompt_tokens: int

    def usage(self) -> dict[str, int] | None:
        """Usage, as honest as asked for: a word is a token."""
        completion = len(self.words) * self.choices
        match self.asked.usage:
            case "honest":
                prompt = self.prompt_tokens
            case "none":
                return None
            case "negative":
                prompt, completion = -self.prompt_tokens, -completion
            case "absurd":
                prompt, completion = _ABSURD, _ABSURD
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self, answer_id: str, created: int) -> bytes:
        """The JSON answer."""
        message = {"role": "assistant", "content": "".join(self.words), "refusal": None}
        choice = {"message": message, "logprobs": None, "finish_reason": self.finish}
        answer: dict[str, Any] = {
            "id": answer_id,
            "object": "chat.completion",
            "created": created,
            "model": MODEL,
            "choices": [{"index": index, **choice} for index in range(self.choices)],
        }
        if (usage := self.usage()) is not None:
            answer["usage"] = usage
        return _ENCODER.encode(answer)

    def chunks(self, answer_id: str, created: int) -> list[bytes]:
        """The stream's content, one block of events per word (one event per choice); the role comes with the first."""
        head = _chunk_head(answer_id, created)
        blocks: list[bytes] = []
        role = b'"role":"assistant",'
        for word in self.words:
            content = _ENCODER.encode(word)
            blocks.append(
                b"".join(
                    b'%b[{"index":%d,"delta":{%b"content":%b},"finish_reason":null}],"usage":null}\n\n'
                    % (head, index, role, content)
                    for index in range(self.choices)
                )
            )
            role = b""
        return blocks

    def tail(self, answer_id: str, created: int) -> bytes:
        """The stream's end: finish reasons, usage, `[DONE]`."""
        head = _chunk_head(answer_id, created)
        reason = _ENCODER.encode(self.finish)
        events = [
            b'%b[{"index":%d,"delta":{},"finish_reason":%b}],"usage":null}\n\n' % (head, index, reason)
            for index in range(self.choices)
        ]
        if (usage := self.usage()) is not None:
            events.append(b'%b[],"usage":%b}\n\n' % (head, _ENCODER.encode(usage)))
        return b"".join((*events, sse.DONE))


def _chunk_head(answer_id: str, created: int) -> bytes:
    return b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":"%b","choices":' % (
        answer_id.encode(),
        created,
        MODEL.encode(),
    )


def echo(body: bytes) -> Echo:
    """What the provider answers to a request.

    Raises:
        msgspec.DecodeError: the request, or its member `demo`, has not the documented form.
    """
    request = _REQUEST.decode(body)
    asked = request.demo or Directives()
    texts = [_text(message.content) for message in request.messages]
    last = next((i for i in reversed(range(len(texts))) if request.messages[i].role == "user"), None)
    words = _words("" if last is None else texts[last])
    if asked.chunks is not msgspec.UNSET:
        source = words or ["echo "]
        words = [source[i % len(source)] for i in range(min(max(asked.chunks, 0), 100_000))]
    finish = asked.finish
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None and 0 < limit < len(words):
        words, finish = words[:limit], "length"
    return Echo(
        asked=asked,
        words=tuple(words),
        finish=finish,
        stream=request.stream,
        choices=min(max(request.n or 1, 1), 128),
        prompt_tokens=max(1, sum(len(text.split()) for text in texts)),
    )


def error_body(status: int, message: str, code: str) -> bytes:
    """An error in OpenAI's form."""
    type_ = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return _ENCODER.encode({"error": {"message": message, "type": type_, "param": None, "code": code}})


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(text for part in content if isinstance(text := part.get("text"), str))
    return content or ""


def _words(text: str) -> list[str]:
    """The text cut before each word, so that the pieces joined are the text."""
    return re.findall(r"\s*\S+|\s+$", text)
