"""Live messages held against `docs/asyncapi.json`: `validate(subject, payload)`, `validate_reply(subject, payload)`."""

import functools
import json
import re
import struct
from pathlib import Path
from typing import Any, Final

import jsonschema

from contracts import dispatch, frames
from contracts.frames import FrameKind

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "asyncapi.json"
_SCHEMA_OF_FRAME: Final = {FrameKind.ACCEPTED: "Accepted", FrameKind.HEAD: "Head", FrameKind.ERROR: "Failure"}
_SPLICE_BYTES: Final = 4


class UndocumentedError(AssertionError):
    """A subject that the document does not have, or a payload that it describes otherwise."""


def channel_of(subject: str) -> str:
    """Name of the channel that a subject belongs to.

    Raises:
        UndocumentedError: none, or more than one.
    """
    names = [name for name, pattern in _patterns() if pattern.fullmatch(subject)]
    if len(names) != 1:
        raise UndocumentedError(f"{subject} belongs to {names or 'no channel'} of the AsyncAPI document")
    return names[0]


def validate(subject: str, payload: bytes) -> str:
    """Check a message that travelled on a subject; returns the name of its channel.

    Raises:
        UndocumentedError: the document has no such subject, or describes another message there.
    """
    name = channel_of(subject)
    _check(name, payload)
    return name


def validate_reply(subject: str, payload: bytes) -> str:
    """Check the reply to a request on a subject; returns the name of the reply's channel.

    Raises:
        UndocumentedError: as `validate`.
    """
    name = f"{channel_of(subject)}.reply"
    if name not in _document()["channels"]:
        raise UndocumentedError(f"{subject} has no reply")
    _check(name, payload)
    return name


def _check(name: str, payload: bytes) -> None:
    message = _document()["channels"][name]["messages"]["message"]
    if "payload" in message:
        _check_json(name, message["payload"], payload)
    elif name in {"frames", "inbox.frames"}:
        _check_frames(payload)
    elif name == "dispatch":
        _check_dispatch(payload)
    elif name == "parts":
        dispatch.unpack_part(payload)
    elif message["description"] == "Empty." and payload:
        raise UndocumentedError(f"{name}: {len(payload)} bytes where none belong")


def _check_json(name: str, schema: dict[str, Any], payload: bytes) -> None:
    try:
        _validator(json.dumps(schema)).validate(json.loads(payload))
    except (ValueError, jsonschema.ValidationError) as error:
        where = getattr(error, "json_path", "$")
        raise UndocumentedError(f"{name}: {where}: {getattr(error, 'message', error)}") from error


def _check_frames(payload: bytes) -> None:
    for kind, _, _, content in frames.unpack(payload):
        if kind in _SCHEMA_OF_FRAME:
            schema = _SCHEMA_OF_FRAME[kind]
            _check_json(f"frame {kind.name}", {"$ref": f"#/components/schemas/{schema}"}, content)
        elif kind is FrameKind.END and len(content) < _SPLICE_BYTES:
            raise UndocumentedError("an END frame without a splice offset")


def _check_dispatch(payload: bytes) -> None:
    dispatch.unpack(payload)
    (length,) = struct.unpack_from(">I", payload)
    _check_json("dispatch", {"$ref": "#/components/schemas/DispatchHeader"}, payload[4 : 4 + length])


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    """Made once per schema: crawling the document for references takes milliseconds."""
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": _document()["components"]})


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DOCUMENT.read_text("utf-8"))
    return document


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    def pattern(address: str) -> re.Pattern[str]:
        parts = re.split(r"{\w+}", address)
        return re.compile(r"[^.*>\s]+".join(re.escape(part) for part in parts))

    channels = _document()["channels"]
    return tuple((name, pattern(channel["address"])) for name, channel in channels.items() if channel["address"])
