import asyncio
import json
from typing import Any

import pytest

from contracts.errors import ErrorCode, HubError
from contracts.usage import TOKENS_MAX, UsageSource
from provider_router.adapters.adapter import Ending
from provider_router.adapters.registry import ADAPTERS
from provider_router.demo_upstream import DemoUpstream
from provider_router.transport import ClosedEarlyError, Deadlines, Opener, Phase, Response, TimedOutError

DEADLINES = Deadlines(connect_s=5, first_byte_s=5, idle_s=5, total_s=10)
ADAPTER = ADAPTERS["demo"]


async def opened(stream: bool, deadlines: Deadlines = DEADLINES, **fields: Any) -> Response:
    body = json.dumps(
        {
            "model": "demo/echo",
            "messages": [{"role": "user", "content": "one  two\nthree "}],
            "stream": stream,
            **fields,
        }
    ).encode()
    request = ADAPTER.request(body, "echo", stream=stream)
    opener: Opener = DemoUpstream()
    response = await opener.open("", request.path, request.headers, request.body, deadlines)
    if response.status != 200:
        raise ADAPTER.error(response.status, response.headers, await response.read(10_000))
    return response


async def whole(**fields: Any) -> Ending:
    return ADAPTER.answer(await (await opened(stream=False, **fields)).read(10_000_000))


async def streamed(deadlines: Deadlines = DEADLINES, **fields: Any) -> tuple[str, Ending]:
    response = await opened(stream=True, deadlines=deadlines, **fields)
    translation = ADAPTER.translation(include_usage=True, choices=fields.get("n", 1))
    while not translation.complete and (data := await response.chunk()) is not None:
        translation.feed(data)
    return translation.delivered_text(), translation.end()


async def test_the_last_user_message_comes_back_word_by_word() -> None:
    text, ending = await streamed()
    assert text == "one  two\nthree "
    assert ending.usage is not None
    assert (ending.usage.input_tokens, ending.usage.output_tokens) == (3, 4)
    answer = json.loads((await whole()).held)
    assert answer["choices"][0]["message"]["content"] == text


async def test_the_number_of_chunks_can_be_asked_for() -> None:
    for chunks in (0, 1, 2, 100):
        _, ending = await streamed(demo={"chunks": chunks})
        assert ending.usage is not None
        assert ending.usage.output_tokens == chunks


async def test_the_limit_of_the_request_is_kept() -> None:
    text, ending = await streamed(max_tokens=2)
    assert (text, ending.finish_reason) == ("one  two", "length")


async def test_several_choices_are_given() -> None:
    _, ending = await streamed(n=3)
    assert ending.usage is not None
    assert ending.usage.output_tokens == 12
    assert len(json.loads((await whole(n=3)).held)["choices"]) == 3


async def test_delays_are_kept() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await streamed(demo={"first_delay_ms": 40, "delay_ms": 20, "chunks": 3})
    assert loop.time() - begun >= 0.04 + 3 * 0.02 - 0.005


@pytest.mark.parametrize("stream", [True, False])
async def test_failures_can_be_asked_for(stream: bool) -> None:
    async def ask(**demo: Any) -> object:
        return await streamed(demo=demo) if stream else await whole(demo=demo)

    with pytest.raises(ClosedEarlyError):
        await ask(fail_at=2)
    for demo in ({"cut_at": 2}, {"error_at": 2}):
        with pytest.raises(HubError) as error:
            await ask(**demo)
        assert error.value.code is ErrorCode.UPSTREAM_BROKEN
    with pytest.raises(HubError) as error:
        await ask(status=429, retry_after=3)
    assert (error.value.code, error.value.retry_after_s) == (ErrorCode.UPSTREAM_RATE_LIMITED, 3.0)
    with pytest.raises(HubError) as error:
        await ask(status=503)
    assert error.value.code is ErrorCode.UPSTREAM_UNAVAILABLE


async def test_what_came_before_a_failure_is_delivered() -> None:
    response = await opened(stream=True, demo={"fail_at": 2})
    data = await response.chunk()
    assert data is not None
    assert data.count(b"\n\n") == 2
    with pytest.raises(ClosedEarlyError):
        await response.chunk()


@pytest.mark.parametrize(
    ("demo", "deadlines", "phase"),
    [
        ({"silent_at": 1}, Deadlines(5, 5, 0.03, 5), Phase.IDLE),
        ({"silent_at": 1}, Deadlines(5, 5, 5, 0.03), Phase.TOTAL),
        ({"first_delay_ms": 5000}, Deadlines(5, 0.03, 5, 5), Phase.FIRST_BYTE),
        ({"delay_ms": 5000}, Deadlines(5, 5, 0.03, 5), Phase.IDLE),
    ],
)
async def test_silence_runs_into_the_deadlines(demo: dict[str, int], deadlines: Deadlines, phase: Phase) -> None:
    with pytest.raises(TimedOutError) as error:
        await streamed(deadlines, demo=demo)
    assert error.value.phase is phase


async def test_a_pause_ends() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    text, _ = await streamed(demo={"silent_at": 1, "stall_ms": 50})
    assert text == "one  two\nthree "
    assert loop.time() - begun >= 0.045


async def test_usage_can_lie() -> None:
    assert (await whole(demo={"usage": "none"})).usage is None
    assert (await whole(demo={"usage": "negative"})).usage is None
    absurd = (await whole(demo={"usage": "absurd"})).usage
    assert absurd is not None
    assert (absurd.input_tokens, absurd.source) == (TOKENS_MAX, UsageSource.ESTIMATED)


async def test_a_finish_reason_can_be_asked_for() -> None:
    assert (await whole(demo={"finish": "content_filter"})).finish_reason == "content_filter"


@pytest.mark.parametrize("demo", [{"unknown": 1}, {"chunks": "x"}, 5])
async def test_a_wrong_directive_is_refused_like_any_request(demo: Any) -> None:
    with pytest.raises(HubError) as error:
        await whole(demo=demo)
    assert (error.value.code, error.value.status) == (ErrorCode.UPSTREAM_REJECTED, 400)


async def test_a_closed_answer_is_over() -> None:
    response = await opened(stream=True)
    response.close()
    assert await response.chunk() is None
