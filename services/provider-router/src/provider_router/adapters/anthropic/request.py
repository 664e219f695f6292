"""A chat request as Anthropic's `POST /messages`: every field is said, or refused by name."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from contracts.errors import ErrorCode, HubError
from provider_router import json_body
from provider_router.adapters.adapter import UpstreamRequest
from provider_router.adapters.anthropic.messages import Json, conversation, invalid, only, unsupported

MAX_TOKENS: Final = 4096
"""Anthropic demands a limit; this one stands in where the client gives none."""
PATH: Final = "/messages"
HEADERS: Final = (("anthropic-version", "2023-06-01"),)
_ENCODER: Final = msgspec.json.Encoder()
_HARMLESS: Final[dict[str, object]] = {
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "store": False,
    "modalities": ["text"],
}
"""Values that ask for what Anthropic does anyway; others of these fields are refused."""
_EFFORTS: Final = frozenset({"low", "medium", "high", "xhigh", "max"})


def request(body: bytes, model: str, *, stream: bool) -> UpstreamRequest:
    """The provider's request for a client's body.

    Raises:
        HubError: `unsupported_feature` or `invalid_request`, with the field as `param`.
    """
    given: Json = {}
    try:
        for name, raw in json_body.members(body).items():
            # Schemas keep their bytes, the rest is read.
            given[name] = raw if name == "tools" else msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise HubError(ErrorCode.INVALID_JSON, "The body is not a JSON object that can be read.") from error
    limits = (given.get("max_completion_tokens"), given.get("max_tokens"), MAX_TOKENS)
    said: Json = {"model": model, "max_tokens": next(limit for limit in limits if limit is not None)}
    if stream:
        said["stream"] = True
    system, said["messages"] = conversation(given.pop("messages", None))
    if system:
        said["system"] = system
    for name, value in given.items():
        if value is not None:
            _FIELDS.get(name, _refuse)(said, name, value)
    _parallel(said, given.get("parallel_tool_calls"))
    return UpstreamRequest(PATH, _ENCODER.encode(said), HEADERS)


def _refuse(_said: Json, name: str, value: Any) -> None:
    if name not in _HARMLESS or _HARMLESS[name] != value:
        unsupported(name)


def _nothing(_said: Json, _name: str, _value: Any) -> None:
    """Said elsewhere."""


def _same(said: Json, name: str, value: Any) -> None:
    said[name] = value


def _stop(said: Json, name: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        invalid(name, "a text or a list of texts")
    if stops:
        said["stop_sequences"] = stops


def _user(said: Json, _name: str, value: Any) -> None:
    said["metadata"] = {"user_id": value}


def _service_tier(said: Json, name: str, value: Any) -> None:
    match value:
        case "auto":
            said["service_tier"] = "auto"
        case "default":
            said["service_tier"] = "standard_only"
        case _:
            unsupported(name)


def _effort(said: Json, name: str, value: Any) -> None:
    if value not in _EFFORTS:
        unsupported(name)
    said.setdefault("output_config", {})["effort"] = value


def _response_format(said: Json, name: str, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    if kind != "json_schema":
        unsupported(f"{name}.type", "JSON is asked for with a json_schema")
    only(value, ("type", "json_schema"), name)
    schema = value.get("json_schema")
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        invalid(f"{name}.json_schema.schema", "an object")
    # A name has no place there, and what is not strict in OpenAI's form may be strict here.
    only(schema, ("name", "strict", "schema", "description"), f"{name}.json_schema")
    if schema.get("description"):
        unsupported(f"{name}.json_schema.description")
    said.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema["schema"]}


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b'{"type":"object","properties":{}}')
    strict: bool | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    function: _Function
    cache_control: msgspec.Raw = msgspec.Raw(b"null")


_RAW_TOOLS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TOOL: Final = msgspec.json.Decoder(_Tool)


def _tools(said: Json, name: str, value: Any) -> None:
    try:
        tools = _RAW_TOOLS.decode(value) if bytes(value) != b"null" else []
    except msgspec.DecodeError:
        invalid(name, "a list of tools")
    if tools:
        said["tools"] = [_tool(raw, f"{name}[{number}]") for number, raw in enumerate(tools)]


def _tool(raw: msgspec.Raw, where: str) -> Json:
    try:
        tool = _TOOL.decode(raw)
    except msgspec.ValidationError as error:
        unsupported(where, f"a tool is a function ({error})")
    if tool.type != "function":
        unsupported(f"{where}.type")
    function = tool.function
    said: Json = {"name": function.name, "input_schema": function.parameters}
    if function.description is not None:
        said["description"] = function.description
    if function.strict is not None:
        said["strict"] = function.strict
    if bytes(tool.cache_control) != b"null":
        said["cache_control"] = tool.cache_control
    return said


def _tool_choice(said: Json, name: str, value: Any) -> None:
    match value:
        case "auto" | "none":
            said[name] = {"type": value}
        case "required":
            said[name] = {"type": "any"}
        case {"type": "function", "function": {"name": str(tool)}}:
            said[name] = {"type": "tool", "name": tool}
        case _:
            unsupported(name)


def _parallel(said: Json, parallel: object) -> None:
    choice = said.get("tool_choice", {"type": "auto"})
    if parallel is False and "tools" in said and choice["type"] != "none":
        said["tool_choice"] = {**choice, "disable_parallel_tool_use": True}


_FIELDS: Final[dict[str, Callable[[Json, str, Any], None]]] = {
    "model": _nothing,
    "stream": _nothing,
    "stream_options": _nothing,
    "parallel_tool_calls": _nothing,
    "max_tokens": _nothing,
    "max_completion_tokens": _nothing,
    "temperature": _same,
    "top_p": _same,
    "top_k": _same,
    "thinking": _same,
    "cache_control": _same,
    "stop": _stop,
    "user": _user,
    "safety_identifier": _user,
    "service_tier": _service_tier,
    "reasoning_effort": _effort,
    "response_format": _response_format,
    "tools": _tools,
    "tool_choice": _tool_choice,
}
"""OpenAI's fields, and those of Anthropic's own that OpenAI's form has no word for (`top_k`, `thinking`,
`cache_control`)."""
