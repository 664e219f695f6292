"""One look into a chat body: the few fields that admission needs, and everything that makes a body unacceptable.

The body itself is never built: a msgspec Struct names the fields, all others are checked as JSON and skipped, and the
client's bytes go on as they came. What the decoder cannot see (NUL, lone surrogates and bad UTF-8 in skipped strings,
depth) is looked for by scans of the bytes that cost little when there is nothing to find, and time in proportion to
the body when there is. Of members with one name the last counts, here as in the router.
"""

import re
from typing import Final, NamedTuple

import msgspec

from contracts.errors import ErrorCode, HubError
from gateway.admission.chat_body import ELEMENTS, Body, Part

DEPTH_MAX: Final = 64


class Peek(NamedTuple):
    """What admission and dispatch need of a body."""

    model: str
    """As the client names it; empty = the default model."""
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


_DECODER: Final = msgspec.json.Decoder(Body)
_SYNTAX: Final = msgspec.json.Decoder(msgspec.Raw)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_PAIR: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
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
        read.model or "",
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


def _media(parts: list[Part], path: str) -> tuple[int, int]:
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
    if b"\\" not in body or b"\\u" not in body:  # the first is a memchr, ten times as fast as the second
        return
    if b"\\u0000" not in body and not _SURROGATE.search(body):
        return
    escapes = body.replace(b"\\\\", b"__")  # from here on every backslash begins an escape
    if b"\\u0000" in escapes:
        raise HubError(ErrorCode.INVALID_JSON, "The body has a NUL character (\\u0000) in a string; remove it.")
    if _SURROGATE.search(_PAIR.sub(b"_", escapes)):
        raise HubError(ErrorCode.INVALID_JSON, "The body has half of a surrogate pair (\\ud800-\\udfff) in a string.")


def _explained(body: bytes, error: msgspec.ValidationError) -> HubError:
    """The refusal of a body with a wrong field: which one, down to the element of a list."""
    try:
        text, path = _located(body, str(error), "")
    except (msgspec.DecodeError, RecursionError) as problem:
        # The wrong field came first; behind it the body is no JSON at all.
        return HubError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {_reason(problem)}.")
    missing = _MISSING.search(text)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return _wrong(f"`{path}` is missing.", path)
    what = text[0].lower() + text[1:]
    return _wrong(f"`{path}`: {what}." if path else f"The body is a JSON object: {what}.", path or None)


def _located(value: bytes | msgspec.Raw, text: str, prefix: str) -> tuple[str, str]:
    """Message and path of an error, `[...]` in the decoder's path replaced by the index of the first wrong element.

    Members and elements stay undecoded bytes, so that a large body costs no more memory than its elements' number.
    """
    match = _ERROR_PATH.search(text)
    if match is None:
        _SYNTAX.decode(value)
        return text, prefix
    message, path = text[: match.start()], match[1].lstrip(".")
    head, in_list, _ = path.partition("[...]")
    here = ".".join(filter(None, (prefix, head)))
    members = _MEMBERS.decode(value)
    if not in_list:
        return message, here
    element = ELEMENTS[head]
    for index, item in enumerate(_ITEMS.decode(members[head])):
        try:
            element.decode(item)
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
