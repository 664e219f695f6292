"""Bytes on the bare wire: what passes untouched, what is cut, what is added, and what never leaves the hub."""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from rig.provider import BEFORE_HEAD, FakeProvider, Received, Reply, refusal
from rig.waiting import until

from journeys import wire
from journeys.sockets import connected, head
from journeys.system import CLAUDE, SECRET, Caller, System

ASK = [{"role": "user", "content": "Say hello."}]
ODD = (
    rb'"x_float": 1.0 ,"x_big":1e400, "x_long":123456789012345678901234567890,"x_null":null,'
    rb'"x_escaped":"\u00fc \/ \ud83d\ude00 \u003c","x_utf8":"' + "ü😀".encode() + rb'",'
    rb'"x_nested":{"b":1.50,"a":[1E5,-0,{"z":null,"y":0.10}]}, "x_empty":{}'
)
"""Everything that a JSON library would write otherwise."""


def chat(**fields: object) -> dict[str, Any]:
    return {"model": "openai/gpt-4o", "messages": ASK, **fields}


def spliced(call: dict[str, Any]) -> bytes:
    """What the hub adds to a usage object."""
    number = format(Decimal(call["credits"]).normalize(), "f")
    return (
        f',"credits":"{call["credits"]}","call_id":"{call["call_id"]}",'
        f'"aigneHubCredits":{number},"modelCallId":"{call["call_id"]}","creditPrefix":"",'
        f'"modelWithProvider":"{call["provider"]}/{call["provider_model"]}"'
    ).encode()


async def called(caller: Caller, response: httpx2.Response) -> dict[str, Any]:
    return await caller.call(response.headers["x-call-id"])


# ---- towards the provider -------------------------------------------------------------------------------------------


@pytest.mark.parity(91)
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"openai/gpt-4o","messages":[{"role":"user","content":"hi"}],%b}' % ODD,
        b'{ %b,\n  "messages" : [ {"content":"h\\u00ef", "role":"user"} ] ,\r\n\t"model"  :  "openai/gpt-4o" }\n' % ODD,
        b'{"x_\\u00fcnder":1,"messages":[{"role":"user","content":"\\"model\\": no"}],"model":"openai/gpt-4o"}',
    ],
    ids=["compact", "spaced", "escaped names"],
)
async def test_a_request_keeps_its_bytes_but_for_the_models_name(system: System, caller: Caller, body: bytes) -> None:
    response = await caller.post(body)
    assert response.status_code == 200, response.text
    assert system.openai.journal[0].body == body.replace(b'"openai/gpt-4o"', b'"gpt-4o"')


async def test_a_name_that_is_spelt_with_escapes_is_the_models_too(system: System, caller: Caller) -> None:
    """Such a body is taken apart: its values keep their bytes, its blanks go."""
    body = rb'{ "mod\u0065l" : "openai/gpt-4o" , "x":{"model":"openai/gpt-4o", "a":1.0}, "messages":[{"role":"user"}]}'
    assert (await caller.post(body)).status_code == 200
    sent = system.openai.journal[0].body
    assert sent == b'{"model":"gpt-4o","x":{"model":"openai/gpt-4o", "a":1.0},"messages":[{"role":"user"}]}'


@pytest.mark.parity(29)
@pytest.mark.parametrize("body", [b'{"messages":%b}', b'{"model":"","messages":%b}', b'{"model":null,"messages":%b}'])
async def test_a_request_without_a_model_gets_the_default_one(system: System, caller: Caller, body: bytes) -> None:
    response = await caller.post(body % json.dumps(ASK).encode())
    assert response.status_code == 200, response.text
    view = await called(caller, response)
    assert (view["provider"], view["provider_model"]) == ("demo", "echo")
    assert response.json()["choices"][0]["message"]["content"] == ASK[0]["content"]
    assert system.openai.journal == []


async def test_of_limits_given_twice_the_provider_gets_the_one_that_was_held_for(
    system: System, caller: Caller
) -> None:
    text = json.dumps(chat())[:-1]
    response = await caller.post(f'{text},"max_tokens":100000,"max_tokens":3}}'.encode())
    view = await called(caller, response)
    assert Decimal(view["hold"]) < 1
    assert system.openai.journal[0].body.count(b"max_tokens") == 1
    assert json.loads(system.openai.journal[0].body)["max_tokens"] == 3


async def test_a_streams_request_asks_for_usage_and_keeps_everything_else(system: System, caller: Caller) -> None:
    body = b'{"model":"openai/gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}],%b}' % ODD
    assert (await caller.post(body)).status_code == 200
    cut = body.replace(b'"openai/gpt-4o"', b'"gpt-4o"')
    assert system.openai.journal[0].body == cut[:-1] + b',"stream_options":{"include_usage":true}}'


@pytest.mark.parametrize("given", [b'{"x":1.0,"include_usage":false}', b'{"x":1.0}', b"null"])
async def test_the_clients_own_stream_options_are_kept(system: System, caller: Caller, given: bytes) -> None:
    body = b'{"stream_options":%b,"model":"openai/gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    response = await caller.post(body % given)
    sent = system.openai.journal[0].body
    asked = json.loads(sent)["stream_options"]
    assert asked.pop("include_usage") is True
    assert asked == ({} if given == b"null" else {"x": 1.0})
    assert (b'"x":1.0' in sent) == (given != b"null")
    assert b'"usage":{' not in response.content


async def test_only_what_a_provider_needs_goes_to_it(system: System, caller: Caller) -> None:
    private = {
        "cookie": "session=private",
        "x-private": "private",
        "user-agent": "private",
        "x_forwarded_for": "1.2.3.4",
    }
    response = await caller.post(chat(), accept_encoding="gzip, br", **private)
    assert response.status_code == 200
    received = system.openai.journal[0]
    assert {name for name, _ in received.headers} == {
        "host",
        "content-length",
        "content-type",
        "accept",
        "accept-encoding",
        "authorization",
        "traceparent",
        "x-request-id",
    }
    assert received.header("accept-encoding") == "identity"
    assert received.header("authorization") == f"Bearer {SECRET}"
    assert received.path == "/v1/chat/completions"
    everything = repr(received.headers).encode() + received.body
    assert b"private" not in everything
    assert caller.key.encode() not in everything


async def test_no_cookie_is_kept_or_passed_on(system: System, caller: Caller) -> None:
    system.openai.always(Reply(headers=(("set-cookie", "theirs=1"), ("x-their-header", "1"))))
    for _ in range(2):
        response = await caller.post(chat())
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
    assert [received.header("cookie") for received in system.openai.journal] == [None, None]


async def test_a_redirect_is_not_followed(system: System, caller: Caller) -> None:
    elsewhere = f"{system.first.url}/chat/completions"
    system.openai.always(Reply(status=307, headers=(("location", elsewhere),), body=b"{}"))
    response = await caller.post(chat())
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_broken")
    assert "location" not in response.headers
    assert str(system.first.port) not in response.text
    assert system.first.journal == []
    assert (await caller.released()).spent == 0


@pytest.mark.parametrize("megabytes", [5, 12, 29])
async def test_a_large_body_arrives_whole(system: System, megabytes: int) -> None:
    rich = await system.caller("1000000")
    picture = base64.b64encode(os.urandom(megabytes * 2**20 * 3 // 4)).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    body = json.dumps(chat(messages=[{"role": "user", "content": content}])).encode()
    assert len(body) > megabytes * 2**20
    response = await rich.post(body)
    assert response.status_code == 200, response.text
    expected = body.replace(b'"openai/gpt-4o"', b'"gpt-4o"')
    received = system.openai.journal[0].body
    assert len(received) == len(expected)
    assert hashlib.sha256(received).digest() == hashlib.sha256(expected).digest()
    assert (await rich.standing()).spent == Decimal("0.017")


# ---- HTTP as clients speak it ---------------------------------------------------------------------------------------


async def test_a_body_comes_after_100_continue(system: System) -> None:
    """As curl sends bodies above a megabyte."""
    rich = await system.caller("100000")
    body = json.dumps(chat(user="u" * 5 * 2**20)).encode()
    async with connected(system) as socket:
        await socket.send(head(rich, f"content-length: {len(body)}", "expect: 100-continue"))
        assert (await socket.answer(within_s=2))[0] == 100
        await socket.send(body)
        assert (await socket.answer())[0] == 200
    assert len(system.openai.journal[0].body) == len(body) - len("openai/")


async def test_a_body_in_chunks_and_pieces_arrives_whole(system: System, caller: Caller) -> None:
    body = json.dumps(chat()).encode()
    async with connected(system) as socket:
        await socket.send(head(caller, "transfer-encoding: chunked"))
        for byte in body:
            await socket.send(b"1\r\n%c\r\n" % byte)
        await socket.send(b"0\r\n\r\n")
        status, _, answer = await socket.answer()
    assert (status, json.loads(answer)["usage"]["credits"]) == (200, "0.0170000000")
    assert system.openai.journal[0].body == body.replace(b'"openai/gpt-4o"', b'"gpt-4o"')


async def test_requests_sent_ahead_are_answered_in_their_order(system: System, caller: Caller) -> None:
    system.openai.replies(Reply(pieces=("slow",), head_delay_s=0.2), Reply(pieces=("quick",)))
    body = json.dumps(chat()).encode()
    request = head(caller, f"content-length: {len(body)}") + body
    async with connected(system) as socket:
        await socket.send(request + request + head(caller, "content-length: 1", "connection: close") + b"{")
        answers = [await socket.answer() for _ in range(3)]
        await socket.closed()
    texts = [json.loads(answer)["choices"][0]["message"]["content"] for _, _, answer in answers[:2]]
    assert texts == ["slow", "quick"]
    assert [status for status, _, _ in answers] == [200, 200, 400]


@pytest.mark.parity(26)
async def test_browsers_of_any_origin_may_call(caller: Caller) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    wanted = {**asked, "access-control-request-headers": "authorization, content-type, x-stainless-os"}
    for path in ("/v1/chat/completions", "/api/v2/chat/completions", "/v1/models"):
        allowed = await caller.system.http.options(path, headers=wanted)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "*"
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    for response in (await caller.post(chat(), **asked), await caller.post(b"{", **asked)):
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-expose-headers"] == "*"


# ---- towards the client ---------------------------------------------------------------------------------------------

ODD_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion", "created":1700000000,"model":"gpt-4o-2024-08-06",%b,\n'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"\\u00fc","x":1.0},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"x_cost":1.0, "details":{"a":{"b":1e400}} } ,'
    b'"x_after":{"usage":{"prompt_tokens":1}}}\n'
) % ODD


@pytest.mark.parity(2)
async def test_an_answer_keeps_its_bytes_and_gains_credits_in_its_usage(system: System, caller: Caller) -> None:
    system.openai.always(Reply(body=ODD_ANSWER))
    response = await caller.post(chat())
    assert response.status_code == 200, response.text
    at = ODD_ANSWER.index(b"} ,", ODD_ANSWER.index(b'"details"'))
    added = spliced(await called(caller, response))
    assert response.content == ODD_ANSWER[:at] + added + ODD_ANSWER[at:]
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)


async def test_a_usage_that_stands_twice_is_not_mistaken(system: System, caller: Caller) -> None:
    """The same object also stands in an unknown field: credits go into the real one."""
    usage = wire.USAGE
    system.openai.always(Reply(body=wire.answer({"content": "ok"}, x_copy=usage)))
    answer = (await caller.post(chat())).json()
    assert answer["usage"].pop("credits") == "0.0170000000"
    assert answer["x_copy"] == usage


async def test_a_usage_without_members_is_counted(system: System, caller: Caller) -> None:
    system.openai.always(Reply(body=wire.answer({"content": "Hello there."}, usage={})))
    usage = (await caller.post(chat())).json()["usage"]
    assert usage["completion_tokens"] > 0
    assert Decimal(usage["credits"]) > 0
    assert (await caller.call(usage["call_id"]))["usage"]["source"] == "counted"


STOP = wire.chunk({}, "stop").replace(b'"stop"', b'"stop", "x":1.00')


def odd_stream(*tail: bytes) -> tuple[bytes, ...]:
    head = b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    return (
        b": a comment\n\n",
        head + b'{"role":"assistant","content":""},"finish_reason":null}],' + ODD + b"}\n\n",
        head + b'{"content":"\\u00fc \\"finish_reason\\": 1"},"finish_reason": null}], "usage": null }\n\n',
        b"event: x\nid: 7\n" + head + b'{"content":"!"},"finish_reason":null}]}\n\n',
        STOP,
        *tail,
    )


@pytest.mark.parity(7, 8)
async def test_a_stream_keeps_its_bytes_and_loses_a_usage_chunk_that_nobody_asked_for(
    system: System, caller: Caller
) -> None:
    system.openai.always(Reply(chunks=odd_stream(wire.usage_chunk(), wire.DONE)))
    response = await caller.post(chat(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.content == b"".join(odd_stream(wire.DONE))
    assert (await called(caller, response))["credits"] == "0.0170000000"


@pytest.mark.parity(8)
@pytest.mark.parity(30)
async def test_the_usage_chunk_keeps_its_bytes_and_gains_credits(system: System, caller: Caller) -> None:
    used = wire.usage_chunk({**wire.USAGE, "x": {"y": 1.0}})
    system.openai.always(Reply(chunks=odd_stream(used, wire.DONE)))
    response = await caller.post(chat(stream=True, stream_options={"include_usage": True}))
    added = spliced(await called(caller, response))
    at = used.rindex(b"}}\n\n")
    assert response.content == b"".join(odd_stream(used[:at] + added + used[at:], wire.DONE))


async def test_usage_in_the_last_choices_chunk_gets_a_chunk_of_its_own(system: System, caller: Caller) -> None:
    last = wire.chunk({}, "stop", usage=wire.USAGE)
    system.openai.always(Reply(chunks=(wire.chunk({"content": "Hi"}), last, wire.DONE)))
    plain = await caller.post(chat(stream=True))
    assert b'"usage"' not in plain.content
    asked = await caller.post(chat(stream=True, stream_options={"include_usage": True}))
    events = [json.loads(line[6:]) for line in asked.text.split("\n\n") if line and "[DONE]" not in line]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["credits"] == "0.0170000000"
    assert "usage" not in events[-2]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_five_megabytes_arrives_whole(system: System, caller: Caller, *, stream: bool) -> None:
    text = os.urandom(5 * 2**20 // 2).hex()
    if stream:
        pieces = [text[at : at + 40_000] for at in range(0, len(text), 40_000)]
        chunks = tuple(wire.chunk({"content": piece}) for piece in pieces)
        system.openai.always(Reply(chunks=(*chunks, wire.chunk({}, "stop"), wire.usage_chunk(), wire.DONE)))
        response = await caller.post(chat(stream=True))
        assert response.content == b"".join((*chunks, wire.chunk({}, "stop"), wire.DONE))
    else:
        system.openai.always(Reply(body=wire.answer({"content": text})))
        answer = (await caller.post(chat())).json()
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["usage"]["credits"] == "0.0170000000"


@pytest.mark.parity(27)
async def test_a_providers_code_type_words_and_retry_after_survive(system: System, caller: Caller) -> None:
    system.openai.always(refusal(429, "Slow down.", code="tokens_per_min", kind="tokens", retry_after="7"))
    response = await caller.post(chat())
    error = response.json()["error"]
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert (error["code"], error["type"]) == ("tokens_per_min", "tokens")
    assert "Slow down." in error["message"]
    assert error["call_id"] == response.headers["x-call-id"]
    assert "x-should-retry" not in response.headers


UNFINISHED = {
    "without a finish reason": Reply(finish_reason=None, piece_delay_s=0.02),
    "without a finish reason or [DONE]": Reply(finish_reason=None, done=False, piece_delay_s=0.02),
    "reset": Reply(cut_at=3, piece_delay_s=0.02),
    "with an error object": Reply(error_at=3, piece_delay_s=0.02),
}


@pytest.mark.parity(10)
@pytest.mark.parametrize("model", ["openai/gpt-4o", CLAUDE])
@pytest.mark.parametrize("reply", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_a_stream_that_ends_too_early_ends_with_an_error_event_and_no_done(
    system: System, caller: Caller, reply: Reply, model: str
) -> None:
    for provider in (system.openai, system.anthropic):
        provider.always(reply)
    response = await caller.post(chat(model=model, stream=True))
    assert response.status_code == 200
    assert b"[DONE]" not in response.content
    assert b'"finish_reason":"' not in response.content
    last = response.content.rstrip(b"\n").rsplit(b"\n\n", 1)[-1]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["call_id"] == response.headers["x-call-id"]
    view = await caller.closed(error["call_id"])
    assert (view["state"], view["credits"], view["error_code"]) == ("failed", "0.0000000000", "upstream_broken")
    assert Decimal(view["written_off"]) > 0
    assert (await caller.released()).spent == 0


# ---- traces and repeats ---------------------------------------------------------------------------------------------


def traced(received: Received) -> str:
    return (received.header("traceparent") or "").split("-")[1]


@pytest.mark.parity(71)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_trace_goes_from_the_client_to_the_provider_and_into_the_row(
    system: System, caller: Caller, *, stream: bool
) -> None:
    trace = os.urandom(16).hex()
    response = await caller.post(chat(stream=stream), traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    assert response.headers["x-trace-id"] == trace
    received = system.openai.journal[0]
    assert traced(received) == trace
    call_id = response.headers["x-call-id"]
    assert await system.hub.value("select trace_id from metering.model_call where id = $1", call_id) == trace


@pytest.mark.parametrize("given", ["", "00-zz-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01"])
async def test_a_traceparent_that_is_none_starts_a_trace(system: System, caller: Caller, given: str) -> None:
    response = await caller.post(chat(), traceparent=given)
    trace = response.headers["x-trace-id"]
    assert int(trace, 16) > 0
    assert trace not in given
    assert traced(system.openai.journal[0]) == trace


@pytest.fixture
def held(system: System) -> Iterator[FakeProvider]:
    """A provider whose answers stop in the middle until released."""
    reply = Reply(hold_at=3)
    system.openai.always(reply)
    yield system.openai
    reply.released.set()


async def test_a_client_that_leaves_is_left_by_the_hub_within_a_second(held: FakeProvider, caller: Caller) -> None:
    async with caller.system.http.stream(
        "POST", "/v1/chat/completions", json=chat(stream=True), headers=caller.headers
    ) as response:
        await anext(response.aiter_raw())
    await left(held.journal[0], caller, response.headers["x-call-id"])


async def test_a_client_that_leaves_before_its_answer_began_pays_nothing(system: System, caller: Caller) -> None:
    system.openai.always(Reply(hold_at=BEFORE_HEAD))
    waiting = asyncio.create_task(caller.post(chat()))
    received = await system.openai.asked()
    waiting.cancel()
    view = await left(received, caller, received.call_id)
    assert view["credits"] == "0.0000000000"


@pytest.mark.parametrize("megabytes", [0, 9])
async def test_a_client_that_leaves_before_a_router_took_the_call_is_left_too(system: System, megabytes: int) -> None:
    rich = await system.caller("100000")
    system.openai.always(Reply(hold_at=3))
    routers = [name for name in system.hub.processes.names if name.startswith("provider-router")]
    await system.hub.pause(*routers)
    try:
        body = chat(stream=True, user="u" * megabytes * 2**20)
        waiting = asyncio.create_task(rich.post(body))

        async def reserved() -> bool:
            return (await rich.standing()).calls == 1

        await until(reserved, what="the call is in the books")
        waiting.cancel()
        await asyncio.wait([waiting])
    finally:
        await system.hub.resume(*routers)
    assert (await rich.released(within_s=5)).spent < 1
    call_id = await system.hub.value("select id::text from metering.model_call where account = $1", rich.account)
    view = await rich.call(call_id)
    # The row can be seen before the gateway hears of it: then the client left before the call was dispatched.
    assert view["outcome"] == "cancelled" or view["error_code"] == "client_cancelled"

    async def nobody_is_asked() -> bool:
        return all(received.gone_at is not None for received in system.openai.of(call_id))

    await until(nobody_is_asked, within_s=5.0, what="the provider is left")


async def left(received: Received, caller: Caller, call_id: str) -> dict[str, Any]:
    """The provider was left within a second, and the call is in the books as cancelled."""

    async def gone() -> float | None:
        return received.gone_at

    await until(gone, within_s=5.0, what="the provider is left")
    view = await caller.closed(call_id)
    assert (view["state"], view["outcome"], view["usage"]["source"]) == ("success", "cancelled", "counted")
    assert (await caller.released()).spent == Decimal(view["credits"]) < 1
    return view
