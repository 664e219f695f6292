"""Top-level members of a JSON object, edited while all others keep their bytes.

Numbers (1e400, thirty digits, 1.0), nulls, unknown members and their order stay as they came. Where a body has to be
taken apart, blanks between members go, and of duplicate members the last one counts and stands at the place of the
first.
"""

import re
from typing import Final

import msgspec

Members = dict[str, msgspec.Raw]

_MEMBERS: Final = msgspec.json.Decoder(Members)
_RAW_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder()
_MODEL: Final = re.compile(rb'"model"\s*:\s*("[^"\\]*")')
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
"""A letter of the Latin alphabet, escaped for no need: a member's name may be spelt so."""
_ONCE: Final = tuple(b'"%b"' % name for name in (
    b"model", b"messages", b"n", b"max_tokens", b"max_completion_tokens", b"stream", b"stream_options"
))  # fmt: skip
"""Members that admission reads. Readers differ in which of two counts: what is held for must be what is asked for."""
_OPTIONS: Final = b'"stream_options"'
_ASK_USAGE: Final = b'"stream_options":{"include_usage":true}}'


class JsonBodyError(ValueError):
    """Not a JSON object."""


class _Named(msgspec.Struct, gc=False):
    model: msgspec.Raw = msgspec.Raw()


_NAMED: Final = msgspec.json.Decoder(_Named)


def members(body: bytes) -> Members:
    """The members of an object, undecoded.

    Raises:
        JsonBodyError: not a JSON object.
    """
    try:
        return _MEMBERS.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise JsonBodyError(str(error)) from error


def items(value: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """The elements of an array, undecoded.

    Raises:
        JsonBodyError: not a JSON array.
    """
    try:
        return _RAW_LIST.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise JsonBodyError(str(error)) from error


def joined(fields: Members) -> bytes:
    """The object with these members."""
    if not fields:
        return b"{}"
    parts: list[bytes | msgspec.Raw] = []
    opening = b"{"
    for name, value in fields.items():
        parts += (opening, _ENCODER.encode(name), b":", value)
        opening = b","
    parts.append(b"}")
    return b"".join(map(bytes, parts))


def raw(value: object) -> msgspec.Raw:
    """A value, encoded."""
    return msgspec.Raw(_ENCODER.encode(value))


def with_model(body: bytes, model: str, *, include_usage: bool = False) -> bytes:
    """A chat request for the provider: its own name of the model and, if asked, `stream_options.include_usage`.

    Raises:
        JsonBodyError: the body, or its `stream_options`, is no object.
    """
    found = _only_model(body)
    if found is not None and not (include_usage and _OPTIONS in body):
        start, end = found.span(1)
        if not include_usage:
            return b"".join((body[:start], _ENCODER.encode(model), body[end:]))
        brace = body.rindex(b"}")
        return b"".join((body[:start], _ENCODER.encode(model), body[end:brace], b",", _ASK_USAGE))
    fields = members(body)
    fields["model"] = raw(model)
    if include_usage:
        given = fields.get("stream_options")
        options = {} if given is None or bytes(given) == b"null" else members(given)
        options["include_usage"] = msgspec.Raw(b"true")
        fields["stream_options"] = msgspec.Raw(joined(options))
    return joined(fields)


def _only_model(body: bytes) -> re.Match[bytes] | None:
    """The member `model` of a body that can go on as it is, but for that; None when it has to be taken apart.

    Where the name stands once, no name is spelt with escapes, and the object has the member, that place is the
    member's. Members that must not stand twice make a body go apart, in which the last one counts.
    """
    if not body.endswith((b"}", b"}\n")) or (b"\\u00" in body and _ESCAPED_LETTER.search(body)):
        return None
    counts = [body.count(name) for name in _ONCE]
    if counts[0] != 1 or max(counts) > 1:
        return None
    try:
        has_model = bool(bytes(_NAMED.decode(body).model))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise JsonBodyError(str(error)) from error
    return _MODEL.search(body) if has_model else None


def with_object(body: bytes, name: str, value: bytes) -> tuple[bytes, int]:
    """The object with the object `value` as its last member, and the position of `value`'s closing brace.

    Raises:
        JsonBodyError: the body is no object.
    """
    fields = members(body)
    # Last in the body, so that the position is known without reading it again.
    fields.pop(name, None)
    fields[name] = msgspec.Raw(value)
    whole = joined(fields)
    return whole, len(whole) - 2


def closing_brace(body: bytes, value: bytes) -> int | None:
    """Where the closing brace of `value`, an object inside `body` with at least one member, stands.

    Quotes inside strings are escaped, so the text of an object with members can only be found where an object is;
    None when it is there more than once.
    """
    at = body.rfind(value)
    if at < 0 or body.find(value, 0, at + len(value) - 1) >= 0:
        return None
    return at + len(value) - 1
