"""The chat body as admission checks it: OpenAI's known fields with their types and bounds, everything else skipped."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from contracts.usage import TOKENS_MAX

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


class Part(msgspec.Struct, gc=False):
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
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class Body(msgspec.Struct, gc=False):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: Annotated[str, Meta(max_length=MODEL_CHARS_MAX)] | None = None
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


ELEMENTS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "messages": msgspec.json.Decoder(_Message),
    "content": msgspec.json.Decoder(Part),
    "tool_calls": msgspec.json.Decoder(_ToolCall),
    "tools": msgspec.json.Decoder(_Typed),
    "functions": msgspec.json.Decoder(_Function),
    "stop": msgspec.json.Decoder(str),
    "modalities": msgspec.json.Decoder(str),
}
"""What the lists of a body hold, for finding the element that is wrong."""


def json_schema(name: str) -> dict[str, Any]:
    """OpenAPI schemas of a chat body as it is checked here: `name` and what it refers to."""
    _, schemas = msgspec.json.schema_components([Body], ref_template=f"#/components/schemas/{name}{{name}}")
    text = msgspec.json.encode({f"{name}{key}": value for key, value in schemas.items()}).decode()
    renamed: dict[str, Any] = msgspec.json.decode(text.replace(f"{name}_", name))
    renamed[name] = renamed.pop(f"{name}Body")
    for key, value in renamed.items():
        value["title"] = key
    return renamed
