"""One look into a chat body: the few fields that admission needs, and everything that makes a body unacceptable.

The body itself is never built: a msgspec Struct names the fields, all others are checked as JSON and skipped, and the
client's bytes go on as they came. What the decoder cannot see (NUL, lone surrogates and bad UTF-8 in skipped strings,
depth, a model named twice) is looked for by scans of the bytes that cost nothing when there is nothing to find.
"""

import json
import re
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from contracts.errors import ErrorCode, HubError
from contracts.usage import TOKENS_MAX

DEPTH_MAX: Final = 64
MODEL_CHARS_MAX: Final = 256
CHOICES_MAX: Final = 128

_Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class _Object(msgspec.Struct, gc=False):
    """Any JSON object; nothing in it is read."""


class _Typed(msgspec.Struct, gc=False):
    type: str


class _ImageUrl(msgspec.Struct, gc=False):
    url: msgspec.Raw
    """Only measured, never built: it may be megabytes of base64."""


class _InputAudio(msgspec.Struct, gc=False):
    data: msgspec.Raw


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    image_url: _ImageUrl | None = None
    input_audio: _InputAudio | None = None
    file: _Object | None = None


class _Function(msgspec.Struct, gc=False):
    name: str


class _ToolCall(msgspec.Struct, gc=False):
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Body(msgspec.Struct, gc=False):
    model: Annotated[str, Meta(min_length=1, max_length=MODEL_CHARS_MAX)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: _Object | None = None
    tools: list[_Typed] | None = None
    tool_choice: str | _Object | None = None
    parallel_tool_calls: bool | None = None
    functions: list[_Function] | None = None
    function_call: str | _Object | None = None
    response_format: _Typed | None = None
    modalities: list[str] | None = None
    prediction: _Object | None = None
    audio: _Object | None = None
    web_search_options: _Object | None = None
    metadata: _Object | None = None
    store: bool | None = None
    user: str | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


_ELEMENTS: Final[dict[str, Any]] = {
    "messages": _Message,
    "content": _Part,
    "tool_calls": _ToolCall,
    "tools": _Typed,
    "functions": _Function,
    "stop": str,
    "modalities": str,
}
"""What the lists of a body hold, for finding the element that is wrong."""


class Peek(NamedTuple):
    """What admission and dispatch need of a body."""

    model: str
    stream: bool
    include_usage: bool
    """Whether the client asked for the usage chunk of a stream."""
    choices: int
    """`n`, at least 1."""
    max_output_tokens: int | None
    """Per choice: the smaller of `max_completion_tokens` and `max_tokens`."""
    media_parts: int
    """Content parts that are not text: their tokens have nothing to do with their bytes."""
    inline_bytes: int
    """Bytes of the body that are images and sound (their URL or base64 text)."""
    tools: bool
    """Whether tools or functions are offered."""
    body_bytes: int


_DECODER: Final = msgspec.json.Decoder(_Body)
_STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPED_NAME: Final = re.compile(rb'"[^"\\]*\\u00[^"]*"\s*:')
_TO_BRACES: Final = bytes.maketrans(b"[]", b"{}")
_NOT_BRACKETS: Final = bytes(value for value in range(256) if value not in b"[]{}")
_ERROR_PATH: Final = re.compile(r" - at `(?:key in )?\$(.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"missing required field `(\w+)`")
_QUOTE: Final = ord('"')
_TEXT_PARTS: Final = frozenset({"text", "refusal"})


def check_content_type(value: bytes | None) -> None:
    """Refuse a body that says it is not JSON in UTF-8; an absent header is taken for JSON.

    Raises:
        HubError: `invalid_request`, with `param` `content-type`.
    """
    if value is None or value == b"application/json":
        return
    kind, _, parameters = value.lower().partition(b";")
    kind = kind.strip()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise _wrong("Send the body as JSON, with `Content-Type: application/json`.", "content-type")
    charset = parameters.partition(b"charset=")[2].strip(b' "')
    if charset and charset.partition(b";")[0].strip(b' "') not in {b"utf-8", b"utf8", b"us-ascii"}:
        raise _wrong("Send the body as JSON in UTF-8.", "content-type")


def peek(body: bytes) -> Peek:
    """Validate a chat body and read the fields that admission needs.

    Raises:
        HubError: `invalid_json` when it is not JSON as RFC 8259 has it, `invalid_request` with `param` otherwise.
    """
    try:
        if not body.isascii():
            body.decode()
        read = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(body, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HubError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {_reason(error)}.") from None
    except RecursionError:
        raise _too_deep() from None
    _scan(body)
    media = inline = 0
    for index, message in enumerate(read.messages):
        if type(message.content) is list:
            parts, size = _media(message.content, f"messages[{index}].content")
            media += parts
            inline += size
    options = read.stream_options
    return Peek(
        read.model,
        read.stream is True,
        options is not None and options.include_usage is True,
        read.n or 1,
        _least(read.max_completion_tokens, read.max_tokens),
        media,
        inline,
        bool(read.tools or read.functions),
        len(body),
    )


def depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether the objects and arrays of a JSON text lie deeper than `limit`.

    Strings and everything but brackets are cut out; each round then removes the innermost pairs, so the rounds that
    are needed are the depth.
    """
    if body.count(b"{") + body.count(b"[") <= limit:
        return False
    brackets = _STRINGS.sub(b"", body).translate(_TO_BRACES, _NOT_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"{}", b"")
    return bool(brackets)


def _media(parts: list[_Part], path: str) -> tuple[int, int]:
    """How many parts of a message are not text, and how many bytes of them are images or sound."""
    media = inline = 0
    for index, part in enumerate(parts):
        if part.type in _TEXT_PARTS:
            continue
        media += 1
        if part.image_url is not None:
            inline += _text_bytes(part.image_url.url, f"{path}[{index}].image_url.url")
        if part.input_audio is not None:
            inline += _text_bytes(part.input_audio.data, f"{path}[{index}].input_audio.data")
    return media, inline


def _text_bytes(raw: msgspec.Raw, path: str) -> int:
    view = memoryview(raw)
    if view[0] != _QUOTE:
        raise _wrong(f"`{path}`: expected `str`.", path)
    return len(view)


def _scan(body: bytes) -> None:
    """What the decoder does not see in the parts that it skips."""
    if depth_exceeds(body, DEPTH_MAX):
        raise _too_deep()
    escapes = b"\\" in body and b"\\u" in body  # the first is a memchr, ten times as fast as the second
    if escapes:
        if b"\\u0000" in body and _NUL.search(body):
            raise HubError(ErrorCode.INVALID_JSON, "The body has a NUL character (\\u0000) in a string; remove it.")
        if _SURROGATE.search(body):
            _refuse_lone_surrogates(body)
    if body.count(b'"model"') != 1 or (escapes and _ESCAPED_NAME.search(body)):
        _refuse_two_models(body)


def _refuse_lone_surrogates(body: bytes) -> None:
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise HubError(
            ErrorCode.INVALID_JSON, "The body has a lone surrogate (half of a \\ud800-\\udfff pair) in a string."
        ) from None


def _refuse_two_models(body: bytes) -> None:
    """Readers differ in which of two members with one name they take: what is priced must be what is asked for."""
    names: list[str] = []

    def members(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object ends last

    json.loads(body, object_pairs_hook=members)
    for name in ("model", "messages", "n", "max_tokens", "max_completion_tokens", "stream"):
        if names.count(name) > 1:
            raise _wrong(f"`{name}` stands in the body twice.", name)


def _explained(body: bytes, error: msgspec.ValidationError) -> HubError:
    """The refusal of a body with a wrong field: which one, down to the element of a list."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as problem:
        return HubError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {_reason(problem)}.")
    text, path = _located(value, str(error), "")
    missing = _MISSING.search(text)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return _wrong(f"`{path}` is missing.", path)
    what = text[0].lower() + text[1:]
    return _wrong(f"`{path}`: {what}." if path else f"The body is a JSON object: {what}.", path or None)


def _located(value: Any, text: str, prefix: str) -> tuple[str, str]:
    """Message and path of an error, `[...]` in the decoder's path replaced by the index of the first wrong element."""
    match = _ERROR_PATH.search(text)
    if match is None:
        return text, prefix
    message, path = text[: match.start()], match[1].lstrip(".")
    head, found, _ = path.partition("[...]")
    here = ".".join(filter(None, (prefix, head)))
    if not found:
        return message, here
    items = value
    for name in head.split("."):
        items = items[name]
    element = _ELEMENTS[head.rpartition(".")[2]]
    for index, item in enumerate(items):
        try:
            msgspec.convert(item, element)
        except msgspec.ValidationError as error:
            return _located(item, str(error), f"{here}[{index}]")
    return message, here


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start}"
    return str(error)[:200].removeprefix("JSON is malformed: ")


def _least(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _wrong(message: str, param: str | None) -> HubError:
    return HubError(ErrorCode.INVALID_REQUEST, message, param=param)


def _too_deep() -> HubError:
    return HubError(ErrorCode.INVALID_REQUEST, f"Objects and arrays may be nested at most {DEPTH_MAX} deep.")


def json_schema(name: str) -> dict[str, Any]:
    """OpenAPI schemas of a chat body as it is checked here: `name` and what it refers to."""
    _, schemas = msgspec.json.schema_components([_Body], ref_template=f"#/components/schemas/{name}{{name}}")
    text = msgspec.json.encode({f"{name}{key}": value for key, value in schemas.items()}).decode()
    renamed: dict[str, Any] = msgspec.json.decode(text.replace(f"{name}_", name))
    renamed[name] = renamed.pop(f"{name}Body")
    for key, value in renamed.items():
        value["title"] = key
    return renamed
