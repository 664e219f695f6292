import json
from typing import Any

import msgspec
import pytest

from contracts.errors import ErrorCode, HubError
from contracts.events import Outcome
from contracts.usage import TOKENS_MAX, Usage, UsageSource
from provider_router.adapters.anthropic import answer
from provider_router.adapters.anthropic.adapter import AnthropicAdapter

ADAPTER = AnthropicAdapter()
HI = [{"role": "user", "content": "Hi"}]


def asked(*, stream: bool = False, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "x", "messages": HI, **fields}).encode()
    said: dict[str, Any] = json.loads(ADAPTER.request(body, "claude", stream=stream).body)
    return said


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


TOOL = {"type": "function", "function": {"name": "f"}}


def test_the_version_and_the_path_are_anthropics() -> None:
    request = ADAPTER.request(json.dumps({"messages": HI}).encode(), "claude", stream=False)
    assert request.path == "/messages"
    assert request.headers == (("anthropic-version", "2023-06-01"),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"seed": 1}, "seed"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"functions": []}, "functions"),
        ({"unknown_field": 1}, "unknown_field"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "minimal"}, "reasoning_effort"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "description": "x"}}},
         "response_format.json_schema.description"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        ({"tools": [{**TOOL, "extra": 1}]}, "tools[0]"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{**HI[0], "name": "Ann"}]}, "messages[0].name"),
        ({"messages": user({"type": "input_audio", "input_audio": {}})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "file", "file": {}})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "text", "text": "a", "x": 1})}, "messages[0].content[0].x"),
        ({"messages": user(image("http://example.com/a.png"))}, "messages[0].content[0].image_url.url"),
        ({"messages": user(image("data:image/tiff;base64,AA=="))}, "messages[0].content[0].image_url.url"),
        ({"messages": user(image("data:image/png,AA"))}, "messages[0].content[0].image_url.url"),
        ({"messages": user(image("https://a/b.png", detail="high"))}, "messages[0].content[0].image_url.detail"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ],
)  # fmt: skip
def test_what_anthropic_cannot_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HubError) as raised:
        asked(**fields)
    assert (raised.value.code, raised.value.param) == (ErrorCode.UNSUPPORTED_FEATURE, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": user({"type": "text", "text": 1})}, "messages[0].content[0].text"),
        ({"messages": user({"type": "image_url"})}, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1]"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": {"id": "1"}}]}, "messages[0].tool_calls"),
        ({"stop": 1}, "stop"),
        ({"tools": {}}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_what_openais_form_does_not_allow_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HubError) as raised:
        asked(**fields)
    assert (raised.value.code, raised.value.param) == (ErrorCode.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False},
        {"store": False},
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"seed": None},
        {"unknown_field": None},
        {"modalities": ["text"]},
        {"response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True}},
        {"tools": None},
        {"tools": []},
        {"parallel_tool_calls": False},
        {"stop": []},
    ],
)
def test_what_anthropic_does_anyway_need_not_be_said(fields: dict[str, Any]) -> None:
    assert asked(**fields) == {
        "model": "claude",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }


@pytest.mark.parametrize(
    ("choice", "parallel", "said"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "f"}}, True, {"type": "tool", "name": "f"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, None, None),
    ],
)
def test_every_tool_choice_has_its_word(choice: Any, parallel: bool | None, said: Any) -> None:
    request = asked(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert request.get("tool_choice") == said
    assert request["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 4096),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
    ],
)
def test_there_is_always_a_limit(fields: dict[str, Any], limit: int) -> None:
    assert asked(**fields)["max_tokens"] == limit


def test_schemas_of_tools_keep_their_bytes() -> None:
    schema = b'{"type": "object", "maximum": 123456789012345678901234567890, "x": 1.0, "y": 1e400}'
    tools = b'[{"type":"function","function":{"name":"f","parameters":' + schema + b',"strict":true}}]'
    body = b'{"messages":[{"role":"user","content":"Hi"}],"tools":' + tools + b"}"
    assert schema in ADAPTER.request(body, "claude", stream=False).body


def test_a_system_message_inside_the_conversation_keeps_its_place() -> None:
    messages = [{"role": "system", "content": "a"}, *HI, {"role": "system", "content": "b"}]
    said = asked(messages=messages)
    assert said["system"] == [{"type": "text", "text": "a"}]
    assert [message["role"] for message in said["messages"]] == ["user", "system"]


def test_thinking_sent_back_by_a_client_is_left_out() -> None:
    said = asked(messages=[*HI, {"role": "assistant", "content": "x", "reasoning_content": "hm"}, *HI])
    assert said["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "x"}]}


@pytest.mark.parametrize(
    ("reason", "finish", "outcome"),
    [
        ("end_turn", "stop", Outcome.STOP),
        ("stop_sequence", "stop", Outcome.STOP),
        ("max_tokens", "length", Outcome.LENGTH),
        ("model_context_window_exceeded", "length", Outcome.LENGTH),
        ("tool_use", "tool_calls", Outcome.TOOL_CALLS),
        ("refusal", "content_filter", Outcome.CONTENT_FILTER),
        ("pause_turn", "stop", Outcome.OTHER),
        ("new_reason", "stop", Outcome.OTHER),
    ],
)
def test_every_stop_reason_has_its_word_and_its_outcome(reason: str, finish: str, outcome: Outcome) -> None:
    assert answer.stop(reason) == (finish, outcome)


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        ({"input_tokens": 1, "output_tokens": 2}, Usage(input_tokens=1, output_tokens=2)),
        ({"input_tokens": -1, "output_tokens": 2}, None),
        ({"input_tokens": 1}, None),
        ({"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": "x"}, None),
        ({"input_tokens": 10**12, "output_tokens": 2},
         Usage(input_tokens=TOKENS_MAX, output_tokens=2, source=UsageSource.ESTIMATED)),
        ({"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 3}},
         Usage(input_tokens=1, reasoning_tokens=2, source=UsageSource.ESTIMATED)),
        ({"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": -3}},
         Usage(input_tokens=1, output_tokens=2, source=UsageSource.ESTIMATED)),
    ],
)  # fmt: skip
def test_usage_is_bounded_and_marked(given: dict[str, Any], usage: Usage | None) -> None:
    body = {"id": "m", "type": "message", "model": "c", "content": [], "stop_reason": "end_turn", "usage": given}
    assert ADAPTER.answer(json.dumps(body).encode()).usage == usage


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        ("overloaded_error", ErrorCode.UPSTREAM_UNAVAILABLE),
        ("api_error", ErrorCode.UPSTREAM_UNAVAILABLE),
        ("rate_limit_error", ErrorCode.UPSTREAM_RATE_LIMITED),
        ("timeout_error", ErrorCode.UPSTREAM_TIMEOUT),
        ("authentication_error", ErrorCode.UPSTREAM_AUTHENTICATION),
        ("permission_error", ErrorCode.UPSTREAM_AUTHENTICATION),
        ("invalid_request_error", ErrorCode.UPSTREAM_BROKEN),
    ],
)
def test_every_error_in_mid_stream_has_its_code(type_: str, code: ErrorCode) -> None:
    event = {"type": "error", "error": {"type": type_, "message": "key sk-ant-abcdefgh"}}
    with pytest.raises(HubError) as raised:
        ADAPTER.translation(include_usage=True).feed(f"event: error\ndata: {json.dumps(event)}\n\n".encode())
    assert (raised.value.code, raised.value.provider_type) == (code, type_)
    assert "abcdefgh" not in raised.value.message


def test_a_block_that_cannot_be_carried_is_no_silent_loss() -> None:
    body = {"id": "m", "type": "message", "model": "c", "content": [{"type": "server_tool_use"}], "stop_reason": "x"}
    with pytest.raises(HubError, match="server_tool_use"):
        ADAPTER.answer(json.dumps(body).encode())
    event = {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use"}}
    with pytest.raises(HubError, match="server_tool_use"):
        ADAPTER.translation(include_usage=True).feed(f"data: {json.dumps(event)}\n\n".encode())


@pytest.mark.parametrize(
    ("creation", "five_minutes", "an_hour", "source"),
    [
        ({"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 212}, 300, 212, UsageSource.REPORTED),
        ({"ephemeral_5m_input_tokens": 512, "ephemeral_1h_input_tokens": 0}, 512, 0, UsageSource.REPORTED),
        ({"ephemeral_1h_input_tokens": 512}, 0, 512, UsageSource.REPORTED),
        (None, 512, 0, UsageSource.REPORTED),
        ({}, 512, 0, UsageSource.REPORTED),
        ({"ephemeral_1h_input_tokens": 513}, 0, 512, UsageSource.ESTIMATED),
        ({"ephemeral_1h_input_tokens": -1}, 512, 0, UsageSource.ESTIMATED),
        ({"ephemeral_1h_input_tokens": "many"}, 512, 0, UsageSource.ESTIMATED),
    ],
)
def test_what_lies_in_the_cache_for_an_hour_is_counted_apart(
    creation: dict[str, Any] | None, five_minutes: int, an_hour: int, source: UsageSource
) -> None:
    raw = {
        "input_tokens": 6,
        "output_tokens": 1,
        "cache_read_input_tokens": 1024,
        "cache_creation_input_tokens": 512,
        "cache_creation": creation,
    }
    used = answer.usage(msgspec.json.decode(json.dumps(raw).encode(), type=answer.GivenUsage))
    assert used == Usage(6, 1, 1024, five_minutes, source=source, cache_write_1h_tokens=an_hour)
    assert used.prompt_tokens == 6 + 1024 + 512


def test_a_streams_split_of_the_cache_survives_its_last_figures() -> None:
    """`message_start` has the split, `message_delta` repeats the sum without it."""
    start = {
        "type": "message_start",
        "message": {
            "id": "m",
            "model": "claude",
            "usage": {
                "input_tokens": 6,
                "output_tokens": 1,
                "cache_creation_input_tokens": 512,
                "cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 12},
            },
        },
    }
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 9, "cache_creation_input_tokens": 512},
    }
    translation = ADAPTER.translation(include_usage=True, choices=1, created=0)
    for event in (start, delta, {"type": "message_stop"}):
        translation.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    ending = translation.end()
    assert ending.usage == Usage(6, 9, 0, 500, cache_write_1h_tokens=12)
    assert b'"prompt_tokens":518' in ending.held
    assert b'"cache_write_tokens":512' in ending.held
