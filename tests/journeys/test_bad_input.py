"""The table of bad input, row by row: the answer, and that it leaves neither a row nor a hold."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import httpx2
import psutil
import pytest
from rig.provider import BEFORE_HEAD, FakeProvider, Received, Reply, refusal
from rig.waiting import until

from contracts.rpc import identity
from contracts.rpc.envelope import Empty
from journeys import wire
from journeys.sockets import connected, head
from journeys.system import CLAUDE, LATE_S, MOUNTS, SECRET, Caller, System
from runtime import rpc

MIB = 2**20
ASK = [{"role": "user", "content": "Say hello."}]


def chat(**fields: object) -> dict[str, Any]:
    return {"model": "openai/gpt-4o", "messages": ASK, **fields}


def with_text(text: bytes) -> bytes:
    return b'{"model":"openai/gpt-4o","messages":[{"role":"user","content":"%b"}]}' % text


def with_field(field: bytes) -> bytes:
    return b'{"model":"openai/gpt-4o","messages":[{"role":"user","content":"hi"}],%b}' % field


def nested(depth: int) -> bytes:
    """A body whose deepest array lies this deep."""
    return with_field(b'"x":' + b"[" * (depth - 1) + b"]" * (depth - 1))


def encoded(**fields: object) -> bytes:
    return json.dumps(chat(**fields)).encode()


# ---- 400: what is no request ----------------------------------------------------------------------------------------

NO_JSON = {
    "empty": b"",
    "cut off": with_text(b"hi")[:-1],
    "trailing comma": with_field(b'"x":1,'),
    "two values": with_text(b"hi") + b"{}",
    "comment": b"/* hi */" + with_text(b"hi"),
    "NaN": with_field(b'"x":NaN'),
    "Infinity": with_field(b'"temperature":Infinity'),
    "minus Infinity": with_field(b'"x":[-Infinity]'),
    "NUL byte": with_text(b"a\0b"),
    "NUL escape": with_text(rb"a\u0000b"),
    "NUL escape in an unknown field": with_field(rb'"x":{"y":"\u0000"}'),
    "lone high surrogate": with_text(rb"\ud83d"),
    "lone low surrogate": with_field(rb'"x":"\ude00 "'),
    "no UTF-8": with_text(b"\xff\xfe"),
    "surrogate in UTF-8": with_text(b"\xed\xa0\x80"),
}
WRONG: dict[str, tuple[bytes, str | None]] = {
    "array": (b"[]", None),
    "null": (b"null", None),
    "number": (b"1", None),
    "nested 65 deep": (nested(66), None),
    "nested a million deep": (nested(1_000_000), None),
    "long model": (encoded(model="m" * 257), "model"),
    "model a number": (encoded(model=4), "model"),
    "no messages": (b'{"model":"openai/gpt-4o"}', "messages"),
    "empty messages": (encoded(messages=[]), "messages"),
    "messages a text": (encoded(messages="hi"), "messages"),
    "a message that is none": (encoded(messages=[*ASK, 5]), "messages[1]"),
    "unknown role": (encoded(messages=[{"role": "king", "content": "hi"}]), "messages[0].role"),
    "content a number": (encoded(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    "part without type": (encoded(messages=[{"role": "user", "content": [{}]}]), "messages[0].content[0].type"),
    "max_tokens 0": (encoded(max_tokens=0), "max_tokens"),
    "max_tokens negative": (encoded(max_tokens=-5), "max_tokens"),
    "max_tokens a text": (encoded(max_tokens="10"), "max_tokens"),
    "max_tokens a fraction": (encoded(max_tokens=1.5), "max_tokens"),
    "max_tokens absurd": (encoded(max_tokens=10**12), "max_tokens"),
    "max_completion_tokens 0": (encoded(max_completion_tokens=0), "max_completion_tokens"),
    "n 0": (encoded(n=0), "n"),
    "n 129": (encoded(n=129), "n"),
    "stream a text": (encoded(stream="yes"), "stream"),
    "stream_options a number": (encoded(stream_options=1), "stream_options"),
    "temperature a text": (encoded(temperature="hot"), "temperature"),
    "temperature too high": (encoded(temperature=2.1), "temperature"),
    "tools an object": (encoded(tools={}), "tools"),
    "stop a number": (encoded(stop=1), "stop"),
}
CONTENT_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error body, which has OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) - {"call_id"} == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parity(3, 28)
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
async def test_what_is_no_json_is_refused(caller: Caller, body: bytes) -> None:
    response = await caller.post(body)
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (400, "invalid_json", "invalid_request_error")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parity(3, 28)
@pytest.mark.parametrize(("body", "param"), WRONG.values(), ids=WRONG.keys())
async def test_what_is_no_chat_request_is_refused_with_the_field(
    caller: Caller, body: bytes, param: str | None
) -> None:
    response = await caller.post(body)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_request")
    assert error["param"] == param


@pytest.mark.parametrize("given", CONTENT_TYPES)
async def test_a_body_that_says_that_it_is_no_json_is_refused(caller: Caller, given: str) -> None:
    response = await caller.post(chat(), content_type=given)
    assert (response.status_code, error_of(response)["param"]) == (400, "content-type")


async def test_nesting_up_to_the_bound_is_let_through(system: System, caller: Caller) -> None:
    assert (await caller.post(nested(64))).status_code == 200
    assert json.loads(system.openai.journal[0].body)["x"] is not None


# ---- 401 and 403 ----------------------------------------------------------------------------------------------------


@pytest.mark.parity(33, 35)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v2/chat/completions", "/v1/models", "/api/user/info"])
async def test_nothing_tells_what_is_wrong_with_a_key(system: System, path: str) -> None:
    revoked, other = await system.caller(), await system.caller()
    await rpc.ask(system.bus, identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id=revoked.key_id), Empty)
    last = "1" if other.key[-1] != "1" else "2"
    given = {
        "missing": None,
        "empty": "Bearer",
        "another scheme": f"Basic {other.key}",
        "malformed": "Bearer sk-1234",
        "unknown": f"Bearer {other.key[:-1]}{last}",
        "revoked": f"Bearer {revoked.key}",
        "with more": f"Bearer {other.key}x",
        "huge": "Bearer " + "a" * 10_000,
    }

    async def answer(authorization: str | None) -> tuple[int, bytes, str | None]:
        headers = {} if authorization is None else {"authorization": authorization}
        if path.endswith("completions"):
            response = await system.http.post(path, json=chat(), headers=headers)
        else:
            response = await system.http.get(path, headers=headers)
        return response.status_code, response.content, response.headers.get("www-authenticate")

    async def refused() -> bool:
        return (await answer(given["revoked"]))[0] == 401

    await until(refused, within_s=5.0, what="a revoked key is refused")
    answers = {what: await answer(authorization) for what, authorization in given.items()}
    assert set(answers.values()) == {answers["missing"]}
    assert answers["missing"][0] == 401
    assert answers["missing"][2] == "Bearer"
    assert system.openai.journal == []
    assert (await revoked.standing()).calls == 0


@pytest.mark.parity(27)
@pytest.mark.parametrize("mount", MOUNTS)
async def test_paths_and_methods_that_are_none_are_refused(caller: Caller, mount: str) -> None:
    missing = await caller.get(f"{mount}/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = await caller.get(f"{mount}/chat/completions")
    assert (wrong.status_code, error_of(wrong)["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


# ---- 413, 431 and 408, on the bare socket ---------------------------------------------------------------------------


def rss(system: System) -> int:
    return int(psutil.Process(system.hub.pids["gateway"]).memory_info().rss)


@pytest.mark.parity(25)
async def test_a_body_that_announces_too_much_is_refused_before_it_comes(system: System, caller: Caller) -> None:
    async with connected(system) as socket:
        await socket.send(head(caller, f"content-length: {30 * MIB + 1}"))
        status, headers, body = await socket.answer()
    assert (status, json.loads(body)["error"]["code"]) == (413, "payload_too_large")
    assert headers["x-should-retry"] == "false"


@pytest.mark.parity(25)
async def test_a_body_without_an_end_is_refused_and_memory_stays_bounded(system: System, caller: Caller) -> None:
    before = peak = rss(system)
    chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
    async with connected(system) as socket:
        await socket.send(head(caller, "transfer-encoding: chunked"))

        async def flood() -> None:
            nonlocal peak
            with suppress(ConnectionError):
                while True:
                    await socket.send(chunk)
                    peak = max(peak, rss(system))

        async with asyncio.timeout(20):
            answer, _ = await asyncio.gather(socket.answer(), flood())
    assert (answer[0], json.loads(answer[2])["error"]["code"]) == (413, "payload_too_large")
    assert peak - before < 128 * MIB


@pytest.mark.parity(25)
async def test_a_body_above_the_limit_gets_its_answer(system: System, caller: Caller) -> None:
    response = await caller.post(b"{" + b" " * (30 * MIB) + b"}")
    assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "lines",
    [
        [f"x-{number}: 1" for number in range(101)],
        ["x-long: " + "v" * 40_000],
        [f"x-{number}: {'v' * 1000}" for number in range(40)],
    ],
    ids=["too many", "one too long", "too long together"],
)
async def test_headers_beyond_their_bounds_are_refused(system: System, caller: Caller, lines: list[str]) -> None:
    async with connected(system) as socket:
        await socket.send(head(caller, "content-length: 2", *lines) + b"{}")
        status, _, body = await socket.answer()
        await socket.closed()
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")


async def test_a_slow_body_is_refused_in_time(system: System, caller: Caller) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with connected(system) as socket:
        await socket.send(head(caller, "content-length: 1000") + b'{"model":')
        status, headers, body = await socket.answer()
        took_s = loop.time() - began
        await socket.closed()
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert "x-should-retry" not in headers
    assert took_s < LATE_S + 1.5


async def test_slow_headers_are_refused_in_time(system: System, caller: Caller) -> None:
    async with connected(system) as socket:
        await socket.send(head(caller)[:40])
        status, _, body = await socket.answer()
        await socket.closed()
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")


# ---- 404, 400 and 402 before anybody is asked -----------------------------------------------------------------------


@pytest.mark.parity(57, 91)
async def test_models_that_are_unknown_or_unpriced_are_refused_with_advice(system: System, caller: Caller) -> None:
    unknown = await caller.post(chat(model="nobody/nothing"))
    unpriced = await caller.post(chat(model="openai/not-a-model-with-a-price"))
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    assert "/models" in error_of(unknown)["message"]
    assert (unpriced.status_code, error_of(unpriced)["code"]) == (400, "model_unpriced")
    assert "hub rates set" in error_of(unpriced)["message"]
    assert {error_of(unknown)["param"], error_of(unpriced)["param"]} == {"model"}
    assert system.openai.journal == []
    assert (await caller.standing()).calls == 0


@pytest.mark.parity(46, 63)
@pytest.mark.parametrize("stream", [False, True])
async def test_without_enough_credit_nobody_is_asked(system: System, *, stream: bool) -> None:
    poor = await system.caller("0.01")
    response = await poor.post(chat(stream=stream))
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (402, "NOT_ENOUGH", "not_enough_credit")
    assert "call_id" not in error
    assert "x-call-id" not in response.headers
    assert system.openai.journal == []
    assert await poor.standing() == (0, 0, 0)
    assert (await poor.post(chat(stream=stream, max_tokens=1, model="demo/echo"))).status_code == 200


async def test_a_call_dearer_than_any_credit_is_refused(system: System, caller: Caller) -> None:
    await system.set_rate("openai/dear", "999999999999999999", "1")

    async def dear() -> bool:
        return (await caller.get("/v1/models/openai/dear")).status_code == 200

    await until(dear, what="the price is known")
    response = await caller.post(chat(model="openai/dear"))
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_request")
    assert await caller.standing() == (0, 0, 0)
    assert system.openai.journal == []


# ---- the provider refuses, fails or talks nonsense ------------------------------------------------------------------

LATE = Reply(hold_at=BEFORE_HEAD)
FAILURES: dict[str, tuple[Reply, int, str]] = {
    "400": (refusal(400), 400, "refused"),
    "404": (refusal(404), 404, "refused"),
    "422": (refusal(422), 422, "refused"),
    "401": (refusal(401, f"Incorrect API key provided: {SECRET}."), 502, "upstream_authentication"),
    "403": (refusal(403, f"Key {SECRET} may not."), 502, "upstream_authentication"),
    "429": (refusal(429, retry_after="9"), 429, "refused"),
    "500": (refusal(500), 502, "refused"),
    "503": (refusal(503), 502, "refused"),
    "500 without JSON": (Reply(status=500, body=b"<html>", content_type="text/html"), 502, "upstream_unavailable"),
    "404 without JSON": (Reply(status=404, body=b"<html>", content_type="text/html"), 502, "upstream_broken"),
    "silence": (LATE, 504, "upstream_timeout"),
    "wrong content type": (Reply(content_type="text/html"), 502, "upstream_broken"),
    "reset before the answer": (Reply(cut_at=BEFORE_HEAD), 502, "upstream_unavailable"),
    "no HTTP": (Reply(http=(b"SSH-2.0-OpenSSH\r\n\r\n",)), 502, "upstream_broken"),
}
WHOLE_ONLY: dict[str, tuple[Reply, int, str]] = {
    "no JSON": (Reply(body=b'{"choices":['), 502, "upstream_broken"),
    "no choices": (Reply(body=b"{}"), 502, "upstream_broken"),
    "an error with 200": (Reply(body=b'{"error":{"message":"No.","code":"theirs"}}'), 502, "theirs"),
    "cut off": (Reply(cut_at=1, cut="close"), 502, "upstream_broken"),
    "silence in the middle": (Reply(hold_at=1), 504, "upstream_timeout"),
}
STREAM_ONLY: dict[str, tuple[Reply, int, str]] = {
    "broken SSE": (Reply(chunks=(b'data: {"finish_reason":"stop"\n\n',)), 502, "upstream_broken"),
    "no events": (Reply(chunks=()), 502, "upstream_broken"),
    "an error first": (Reply(error_at=0), 502, "overloaded"),
}


@pytest.mark.parity(27, 76)
@pytest.mark.parametrize(
    ("reply", "status", "code", "stream"),
    [
        *((*case, False) for case in (FAILURES | WHOLE_ONLY).values()),
        *((*case, True) for case in (FAILURES | STREAM_ONLY).values()),
    ],
    ids=[*(FAILURES | WHOLE_ONLY), *(f"{name}, streaming" for name in FAILURES | STREAM_ONLY)],
)
async def test_a_provider_that_fails_is_told_and_nothing_is_charged(
    system: System, caller: Caller, reply: Reply, status: int, code: str, *, stream: bool
) -> None:
    system.openai.always(reply)
    response = await caller.post(chat(stream=stream))
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert SECRET not in response.text
    assert ("retry-after" in response.headers) == (status == 429)
    view = await caller.closed(response.headers["x-call-id"])
    assert (view["state"], view["credits"], len(view["attempts"])) == ("failed", "0.0000000000", 1)
    assert SECRET not in json.dumps(view)
    # A connection kept alive that breaks without a word may have been closed before the request came: once more.
    assert len(system.openai.journal) <= (2 if reply.cut_at == BEFORE_HEAD else 1)
    assert await caller.released() == (0, 0, 1)


BY_THE_PROVIDER = ("401", "429", "500", "silence", "wrong content type", "reset before the answer", "no HTTP")


@pytest.mark.parity(72, 94, 96)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BY_THE_PROVIDER)
async def test_another_provider_takes_over_from_one_that_fails(
    system: System, caller: Caller, name: str, *, stream: bool
) -> None:
    reply = FAILURES[name][0]
    turns: list[FakeProvider] = []

    def script(who: FakeProvider) -> Callable[[Received], Reply]:
        def answer(_received: Received) -> Reply:
            turns.append(who)
            return reply if who is turns[0] else Reply()

        return answer

    for provider in (system.first, system.second):
        provider.always(script(provider))
    response = await caller.post(chat(model=system.pooled_model(), stream=stream))
    assert response.status_code == 200, response.text
    assert len(set(map(id, turns))) == 2
    view = await caller.call(response.headers["x-call-id"])
    failed, answered = view["attempts"]
    assert (failed["number"], answered["number"], answered["error"], answered["status"]) == (1, 2, "", 200)
    assert failed["error"].startswith("upstream_")
    assert view["provider"] == answered["provider"] != failed["provider"]
    assert (await caller.standing()).spent == Decimal("0.017")


@pytest.mark.parity(97)
@pytest.mark.parametrize("status", [400, 404, 422])
async def test_nobody_else_is_asked_after_the_request_was_refused(system: System, caller: Caller, status: int) -> None:
    for provider in (system.first, system.second):
        provider.always(refusal(status))
    response = await caller.post(chat(model=system.pooled_model()))
    assert response.status_code == status
    assert len(system.first.journal) + len(system.second.journal) == 1


# ---- the provider lies about usage ----------------------------------------------------------------------------------

LIES: dict[str, tuple[Any, str]] = {
    "none": (None, "counted"),
    "negative": ({"prompt_tokens": -7, "completion_tokens": -5, "total_tokens": -12}, "counted"),
    "half negative": ({"prompt_tokens": 7, "completion_tokens": -5}, "counted"),
    "texts": ({"prompt_tokens": "NaN", "completion_tokens": "7"}, "counted"),
    "fractions": ({"prompt_tokens": 7.5, "completion_tokens": 1.5}, "counted"),
    "booleans": ({"prompt_tokens": True, "completion_tokens": True}, "counted"),
    "of nulls": ({"prompt_tokens": None, "completion_tokens": None}, "counted"),
    "absurd": ({"prompt_tokens": 10**15, "completion_tokens": 10**15}, "estimated"),
    "beyond 64 bits": ({"prompt_tokens": 10**30, "completion_tokens": 5}, "estimated"),
    "more cached than sent": (
        {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 900}},
        "estimated",
    ),
    "negative cached": (
        {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -900}},
        "estimated",
    ),
}


@pytest.mark.parity(55)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("usage", "source"), LIES.values(), ids=LIES.keys())
async def test_usage_that_cannot_be_believed_is_counted_or_bounded(
    system: System, usage: Any, source: str, *, stream: bool
) -> None:
    rich = await system.caller("100000000")
    system.openai.always(Reply(usage=usage))
    response = await rich.post(chat(stream=stream, stream_options={"include_usage": True}))
    assert response.status_code == 200, response.text
    view = await rich.call(response.headers["x-call-id"])
    charged, hold = Decimal(view["credits"]), Decimal(view["hold"])
    assert view["usage"]["source"] == source
    assert 0 < charged <= hold < 20
    assert await rich.released() == (0, charged, 1)
    if stream:
        told = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))["usage"]
    else:
        told = response.json()["usage"]
    assert (told["credits"], told["prompt_tokens"] >= 0) == (view["credits"], True)


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_is_no_json_breaks_the_answer_and_costs_nothing(
    system: System, caller: Caller, *, stream: bool
) -> None:
    lie = b'{"prompt_tokens":NaN,"completion_tokens":Infinity}'
    if stream:
        used = wire.usage_chunk({}).replace(b"{}", lie)
        system.openai.always(Reply(chunks=(wire.chunk({"content": "hi"}), wire.chunk({}, "stop"), used, wire.DONE)))
    else:
        system.openai.always(Reply(body=wire.answer({"content": "hi"}, usage={}).replace(b"{}", lie)))
    response = await caller.post(chat(stream=stream))
    assert b'"upstream_broken"' in response.content
    assert b"[DONE]" not in response.content
    assert await caller.released() == (0, 0, 1)


# ---- twice ----------------------------------------------------------------------------------------------------------


async def test_the_table_sent_twice_leaves_neither_a_hold_nor_a_row(system: System, caller: Caller) -> None:
    wrong = [body for body, _ in WRONG.values()]
    bodies = [*NO_JSON.values(), *wrong, encoded(model="nobody/x"), encoded(model="openai/x")]
    poor = await system.caller("0.01")
    books = "select count(*), (select sum(held) from metering.account) from metering.model_call"
    before = await system.hub.fetch(books)
    for _ in range(2):
        answers = await asyncio.gather(*(caller.post(body) for body in bodies), poor.post(chat()), poor.post(chat()))
        assert all(400 <= answer.status_code < 500 for answer in answers)
        for given in CONTENT_TYPES:
            await caller.post(chat(), content_type=given)
        await caller.post(chat(), authorization="Bearer nobody")
    assert await system.hub.fetch(books) == before
    assert (await caller.standing(), await poor.standing()) == ((0, 0, 0), (0, 0, 0))
    assert system.openai.journal == []


async def test_an_answer_in_the_middle_of_the_table_is_still_right(caller: Caller) -> None:
    """A refused request leaves its connection usable for the next."""
    for body in (b"{", nested(66), with_text(rb"\ud83d"), encoded(max_tokens=0)):
        assert (await caller.post(body)).status_code == 400
        assert (await caller.post(chat())).status_code == 200
    for model in ("demo/echo", CLAUDE):
        assert (await caller.post(chat(model=model))).status_code == 200
