"""The official OpenAI Python SDK, unmodified."""

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from rig.provider import FakeProvider, Reply, refusal

from contracts.money import to_text
from journeys import wire
from journeys.system import CLAUDE, MOUNTS, Caller, System

MODEL = "openai/gpt-4o"
ASK: list[Any] = [{"role": "user", "content": "Say hello."}]
HELLO = "Hello from the provider."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
T = TypeVar("T")


@pytest.fixture(params=MOUNTS)
def base_url(request: pytest.FixtureRequest, system: System) -> str:
    """Where the SDK is pointed to."""
    return system.hub.url + str(request.param)


async def blocking(caller: Caller, work: Callable[[OpenAI], T], *, mount: str = "/v1", retries: int = 0) -> T:
    """Use the synchronous client, in a thread: the fake providers live in this one."""

    def use() -> T:
        with OpenAI(base_url=caller.system.hub.url + mount, api_key=caller.key, max_retries=retries) as client:
            return work(client)

    return await asyncio.to_thread(use)


def asyncly(caller: Caller, base_url: str, retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key=caller.key, max_retries=retries)


@pytest.mark.parity(2, 33, 52)
async def test_an_answer_carries_credits_and_the_call_that_the_books_have(caller: Caller, base_url: str) -> None:
    async with asyncly(caller, base_url) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 5, 12)
    extra = usage.model_extra
    assert extra is not None
    view = await caller.call(extra["call_id"])
    assert extra["credits"] == view["credits"] == to_text(7 * Decimal("0.001") + 5 * Decimal("0.002"))
    assert extra["modelCallId"] == extra["call_id"]
    assert Decimal(str(extra["aigneHubCredits"])) == Decimal(view["credits"])
    assert view["state"] == "success"
    assert view["key_id"] == caller.key_id
    assert (await caller.standing()).held == 0


@pytest.mark.parity(2, 7)
async def test_a_stream_is_the_answer_piece_by_piece(caller: Caller, base_url: str) -> None:
    async with asyncly(caller, base_url) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parity(8)
async def test_the_usage_chunk_comes_last_with_credits_and_call(caller: Caller, base_url: str) -> None:
    async with asyncly(caller, base_url) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *before, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 12
    extra = last.usage.model_extra
    assert extra is not None
    assert (await caller.call(extra["call_id"]))["credits"] == extra["credits"] == "0.0170000000"
    assert all(chunk.usage is None for chunk in before)


@pytest.mark.parity(2, 7)
async def test_the_synchronous_client_reads_answers_and_streams(system: System, caller: Caller) -> None:
    def both(client: OpenAI) -> tuple[str | None, str]:
        whole = client.chat.completions.create(model=MODEL, messages=ASK)
        with client.chat.completions.create(model=MODEL, messages=ASK, stream=True) as stream:
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return whole.choices[0].message.content, streamed

    assert await blocking(caller, both) == (HELLO, HELLO)
    assert len(system.openai.journal) == 2


@pytest.mark.parity(4)
async def test_tools_are_offered_and_called(system: System, caller: Caller, base_url: str) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    system.openai.always(Reply(body=wire.answer({"content": None, "tool_calls": [called]}, "tool_calls")))
    async with asyncly(caller, base_url) as client:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[
                *ASK,
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ],
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
    (tool_call,) = answer.choices[0].message.tool_calls or []
    assert tool_call.type == "function"
    assert json.loads(tool_call.function.arguments) == {"city": "Oslo"}
    assert answer.choices[0].finish_reason == "tool_calls"
    sent = json.loads(system.openai.journal[0].body)
    assert sent["tools"] == [WEATHER]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["messages"][1]["tool_calls"] == [called]


@pytest.mark.parity(4, 7)
async def test_streamed_tool_calls_accumulate(system: System, caller: Caller, base_url: str) -> None:
    def part(index: int, **more: object) -> bytes:
        return wire.chunk({"tool_calls": [{"index": index, **more}]})

    system.openai.always(
        Reply(
            chunks=(
                wire.chunk({"role": "assistant", "content": None}),
                part(0, id="call_1", type="function", function={"name": "weather", "arguments": ""}),
                part(0, function={"arguments": '{"city":'}),
                part(0, function={"arguments": '"Oslo"}'}),
                part(1, id="call_2", type="function", function={"name": "weather", "arguments": '{"city":"Rome"}'}),
                wire.chunk({}, "tool_calls"),
                wire.usage_chunk(),
                wire.DONE,
            )
        )
    )
    async with (
        asyncly(caller, base_url) as client,
        client.chat.completions.stream(model=MODEL, messages=ASK, tools=[WEATHER]) as stream,
    ):
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    arguments = [json.loads(call.function.arguments)["city"] for call in calls if call.type == "function"]
    assert arguments == ["Oslo", "Rome"]
    assert final.choices[0].finish_reason == "tool_calls"


class City(BaseModel):
    """What the answer has to look like."""

    name: str
    inhabitants: int


@pytest.mark.parity(5)
async def test_an_answer_is_bound_to_a_json_schema(system: System, caller: Caller, base_url: str) -> None:
    system.openai.always(Reply(body=wire.answer({"content": '{"name":"Oslo","inhabitants":700000}'})))
    async with asyncly(caller, base_url) as client:
        answer = await client.chat.completions.parse(model=MODEL, messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo", inhabitants=700_000)
    format_sent = json.loads(system.openai.journal[0].body)["response_format"]
    assert format_sent["json_schema"]["strict"] is True
    assert set(format_sent["json_schema"]["schema"]["properties"]) == {"name", "inhabitants"}


@pytest.mark.parity(6)
async def test_images_among_the_parts_arrive_as_they_are(system: System, caller: Caller, base_url: str) -> None:
    parts: list[Any] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
    ]
    async with asyncly(caller, base_url) as client:
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert json.loads(system.openai.journal[0].body)["messages"][0]["content"] == parts


async def test_two_choices_are_answered_and_streamed(caller: Caller, base_url: str) -> None:
    async with asyncly(caller, base_url) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=ASK, n=2)
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, n=2, stream=True, stream_options={"include_usage": True}
        )
        texts, finished, usage = ["", ""], set[int](), None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason == "stop":
                    finished.add(choice.index)
    assert [choice.message.content for choice in whole.choices] == [HELLO, HELLO]
    assert (texts, finished) == ([HELLO, HELLO], {0, 1})
    assert usage is not None
    assert usage.completion_tokens == 10


async def test_unknown_fields_pass_both_ways(system: System, caller: Caller, base_url: str) -> None:
    vendor = {"depth": 1.0, "none": None, "list": [1, {"a": "b"}]}
    system.openai.always(Reply(body=wire.answer({"content": "ok", "x_trace": vendor}, x_vendor=vendor)))
    async with asyncly(caller, base_url) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"x_vendor": vendor})
    assert json.loads(system.openai.journal[0].body)["x_vendor"] == vendor
    assert (answer.model_extra or {})["x_vendor"] == vendor
    assert (answer.choices[0].message.model_extra or {})["x_trace"] == vendor
    assert answer.model == "gpt-4o-2024-08-06"


@pytest.mark.parity(26)
async def test_headers_name_request_call_and_trace(caller: Caller, base_url: str) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with asyncly(caller, base_url) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=ASK,
            extra_headers={"x-request-id": "my-request", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
        )
        answer = raw.parse()
        plain = await client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
        streamed = await client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, stream=True)
        async for _ in streamed.parse():
            pass
    assert raw.headers["x-request-id"] == "my-request" == answer._request_id
    assert raw.headers["x-trace-id"] == trace
    view = await caller.call(raw.headers["x-call-id"])
    assert (view["trace_id"], view["request_id"]) == (trace, "my-request")
    assert raw.headers["access-control-allow-origin"] == "*"
    assert plain.headers["x-request-id"] not in {"", "my-request"}
    assert len(plain.headers["x-trace-id"]) == 32
    assert (await caller.call(streamed.headers["x-call-id"]))["state"] == "success"
    assert streamed.headers["x-accel-buffering"] == "no"


async def test_models_are_listed_and_looked_up(caller: Caller, base_url: str) -> None:
    async with asyncly(caller, base_url) as client:
        names = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("openai/gpt-4o")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("nobody/nothing")
    assert {"demo/echo", "first0/pooled-0", "second0/pooled-0"} <= set(names)
    assert (one.id, one.owned_by, one.object) == ("openai/gpt-4o", "openai", "model")
    assert (one.model_extra or {})["input_credits_per_token"] == "0.001"
    assert missing.value.code == "model_not_found"


UPSTREAM_ERRORS = [
    (400, openai.BadRequestError),
    (404, openai.NotFoundError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
]


@pytest.mark.parity(27)
@pytest.mark.parametrize(("status", "expected"), UPSTREAM_ERRORS)
async def test_a_providers_refusal_is_the_sdks_exception(
    system: System, caller: Caller, base_url: str, status: int, expected: type[openai.APIStatusError]
) -> None:
    system.openai.always(refusal(status, "No.", code="their_code", kind="their_type"))
    async with asyncly(caller, base_url) as client:
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(model=MODEL, messages=ASK)
        with pytest.raises(expected):
            await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    assert (caught.value.code, caught.value.type) == ("their_code", "their_type")
    assert "No." in caught.value.message
    standing = await caller.released()
    assert (standing.spent, standing.calls) == (0, 2)


@pytest.mark.parity(28, 35)
async def test_our_own_refusals_are_the_sdks_exceptions(system: System, caller: Caller, base_url: str) -> None:
    wrong: Any = 0
    async with asyncly(caller, base_url) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=wrong)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody/nothing", messages=ASK)
    assert (bad.value.param, bad.value.code) == ("max_tokens", "invalid_request")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    async with AsyncOpenAI(base_url=base_url, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as stranger:
            await client.chat.completions.create(model=MODEL, messages=ASK)
    assert stranger.value.code == "invalid_api_key"
    poor = await system.caller("0")
    async with asyncly(poor, base_url) as client:
        with pytest.raises(openai.APIStatusError) as broke:
            await client.chat.completions.create(model=MODEL, messages=ASK)
    assert (broke.value.status_code, broke.value.type) == (402, "NOT_ENOUGH")
    assert system.openai.journal == []


async def test_a_failure_that_may_pass_is_tried_again(system: System, caller: Caller) -> None:
    system.openai.replies(refusal(500), refusal(429, retry_after="1"))
    answer = await blocking(caller, lambda client: client.chat.completions.create(model=MODEL, messages=ASK), retries=2)
    assert answer.choices[0].message.content == HELLO
    assert len(system.openai.journal) == 3
    standing = await caller.released()
    assert (standing.calls, standing.spent) == (3, Decimal("0.017"))


async def test_a_failure_that_cannot_pass_is_not_tried_again(system: System, caller: Caller) -> None:
    """The provider refused the hub's credential: 502, which the SDK would repeat without `x-should-retry: false`."""
    system.openai.always(refusal(401))
    with pytest.raises(openai.InternalServerError) as caught:
        await blocking(caller, lambda client: client.chat.completions.create(model=MODEL, messages=ASK), retries=2)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.code == "upstream_authentication"
    assert len(system.openai.journal) == 1


BROKEN_STREAMS = {
    "reset": Reply(cut_at=3),
    "closed": Reply(cut_at=3, cut="close"),
    "ended without a finish reason": Reply(finish_reason=None),
    "ended without a finish reason or [DONE]": Reply(finish_reason=None, done=False),
    "an error object": Reply(error_at=3),
    "a last chunk that is no JSON": Reply(
        chunks=(wire.chunk({"content": "Hel"}), b'data: {"choices":[{"index":0,"finish_reason":"stop"\n\n', wire.DONE)
    ),
}


@pytest.mark.parity(10)
@pytest.mark.parametrize("reply", BROKEN_STREAMS.values(), ids=BROKEN_STREAMS.keys())
async def test_a_stream_that_breaks_raises_and_costs_nothing(system: System, caller: Caller, reply: Reply) -> None:
    system.openai.always(reply)
    got: list[ChatCompletionChunk] = []

    def read(client: OpenAI) -> None:
        with client.chat.completions.create(model=MODEL, messages=ASK, stream=True) as stream:
            got.extend(stream)

    with pytest.raises(openai.APIError):
        await blocking(caller, read)
    async with asyncly(caller, f"{system.hub.url}/api/v2") as client:
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(model=MODEL, messages=ASK, stream=True):
                pass
    assert not any(chunk.choices[0].finish_reason for chunk in got)
    standing = await caller.released()
    assert (standing.spent, standing.calls) == (0, 2)


@pytest.fixture
def claude(system: System) -> FakeProvider:
    return system.anthropic


@pytest.mark.parity(2, 6)
async def test_anthropic_answers_in_openais_shape(claude: FakeProvider, caller: Caller, base_url: str) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
        },
    ]
    async with asyncly(caller, base_url) as client:
        whole = await client.chat.completions.create(model=CLAUDE, messages=messages, max_tokens=50)
        stream = await client.chat.completions.create(
            model=CLAUDE, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (HELLO, "stop")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HELLO
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens == 12
    assert (chunks[-1].usage.model_extra or {})["credits"] == "0.0170000000"
    first = claude.journal[0]
    sent = json.loads(first.body)
    assert first.path == "/v1/messages"
    assert first.header("anthropic-version")
    assert sent["max_tokens"] == 50
    assert sent["model"] == CLAUDE.partition("/")[2]
    assert json.dumps(sent["system"]).count("Be brief.") == 1
    assert sent["messages"][0]["content"][1]["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": "iVBORw0KGgo=",
    }


@pytest.mark.parity(4, 7)
async def test_anthropics_tool_calls_are_openais(claude: FakeProvider, caller: Caller, base_url: str) -> None:
    def said(kind: str, **fields: object) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": []}
    block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    claude.always(
        Reply(
            chunks=(
                said("message_start", message={**message, "usage": {"input_tokens": 9, "output_tokens": 1}}),
                said("content_block_start", index=0, content_block=block),
                said("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"city":'}),
                said("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '"Oslo"}'}),
                said("content_block_stop", index=0),
                said("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 11}),
                said("message_stop"),
            )
        )
    )
    async with (
        asyncly(caller, base_url) as client,
        client.chat.completions.stream(model=CLAUDE, messages=ASK, tools=[WEATHER]) as stream,
    ):
        final = await stream.get_final_completion()
    (tool_call,) = final.choices[0].message.tool_calls or []
    assert tool_call.type == "function"
    assert (tool_call.id, json.loads(tool_call.function.arguments)) == ("toolu_1", {"city": "Oslo"})
    assert final.choices[0].finish_reason == "tool_calls"
    assert json.loads(claude.journal[0].body)["tools"][0]["input_schema"] == WEATHER["function"]["parameters"]


@pytest.mark.parametrize("reply", [Reply(cut_at=4), Reply(error_at=4), Reply(done=False, finish_reason=None)])
async def test_a_broken_stream_of_anthropic_raises(claude: FakeProvider, caller: Caller, reply: Reply) -> None:
    claude.always(reply)
    async with asyncly(caller, f"{caller.system.hub.url}/v1") as client:
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(model=CLAUDE, messages=ASK, stream=True):
                pass
    assert (await caller.released()).spent == 0
