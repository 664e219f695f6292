"""One Idempotency-Key is one call, one bill and one answer, for however many requests; and a stream can be resumed."""

import asyncio
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from rig.provider import Reply, refusal
from rig.provider_replies import INPUT_TOKENS, PIECES
from rig.waiting import until

from contracts import streams, subjects
from contracts.ids import new_call_id
from contracts.permissions import PROVISIONER
from journeys.system import Caller, System

PRICE = Decimal("0.001") * INPUT_TOKENS + Decimal("0.002") * len(PIECES)
CHAT = "/v1/chat/completions"


def chat(text: str = "Say hello.", *, stream: bool = False) -> dict[str, Any]:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": text}], "stream": stream, **options}


def on(system: System, gateway: int, path: str = CHAT) -> str:
    return system.hub.urls[gateway] + path


@pytest.fixture
def held(system: System) -> Iterator[Reply]:
    """The provider's answers stop in the middle until released."""
    reply = Reply(hold_at=3)
    system.openai.always(reply)
    yield reply
    reply.released.set()


async def resumed(caller: Caller, call_id: str, after: str | None = None, *, gateway: int = 1) -> httpx2.Response:
    headers = {**caller.headers, **({} if after is None else {"last-event-id": after})}
    return await caller.system.http.get(on(caller.system, gateway, f"/api/v2/calls/{call_id}/stream"), headers=headers)


async def forget_answers(system: System) -> None:
    """As when the keeping time is over."""
    bus = await system.hub.connect(PROVISIONER)
    await bus.jetstream().purge_stream(streams.FRAMES.name)
    await bus.close()


def is_replayed(response: httpx2.Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


# ---- one key -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_fifty_requests_with_one_key_are_one_call_one_bill_and_fifty_equal_answers(
    system: System, caller: Caller, held: Reply, stream: bool
) -> None:
    requests = [
        asyncio.create_task(caller.post(chat(stream=stream), path=on(system, number % 2), idempotency_key="one"))
        for number in range(50)
    ]
    received = await system.openai.asked()
    held.released.set()
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers][:3]
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["x-call-id"] for answer in answers} == {received.call_id}
    assert sum(not is_replayed(answer) for answer in answers) == 1
    assert f'"credits":"{PRICE:.10f}"' in answers[0].text
    assert answers[0].text.endswith("data: [DONE]\n\n") == stream
    assert len(system.openai.journal) == 1
    standing = await caller.released()
    assert (standing.calls, standing.spent) == (1, PRICE)


async def test_a_request_joins_a_stream_that_runs_and_reads_it_as_it_comes(
    system: System, caller: Caller, held: Reply
) -> None:
    headers = {**caller.headers, "idempotency-key": "busy"}
    async with (
        system.http.stream("POST", on(system, 0), json=chat(stream=True), headers=headers) as first,
        system.http.stream("POST", on(system, 1), json=chat(stream=True), headers=headers) as second,
    ):
        assert second.headers["idempotent-replayed"] == "true"
        assert second.headers["x-call-id"] == first.headers["x-call-id"]
        ours, theirs = first.aiter_raw(), second.aiter_raw()
        for parts in (ours, theirs):  # the provider holds the rest back: without "Hello" there is nothing more to read
            async with asyncio.timeout(10):
                while b"Hello" not in await anext(parts):
                    pass
        assert (await caller.call(first.headers["x-call-id"]))["state"] == "processing"
        held.released.set()
        for parts in (ours, theirs):
            assert b"".join([part async for part in parts]).endswith(b"data: [DONE]\n\n")
    assert (await caller.released()).calls == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_replayed_on_any_gateway_with_its_call_and_credits(
    system: System, caller: Caller, stream: bool
) -> None:
    first = await caller.post(chat(stream=stream), idempotency_key="again")
    for gateway in (0, 1):
        again = await caller.post(chat(stream=stream), path=on(system, gateway), idempotency_key="again")
        assert (again.status_code, again.content, is_replayed(again)) == (200, first.content, True)
        assert again.headers["x-call-id"] == first.headers["x-call-id"]
        assert again.headers["content-type"] == first.headers["content-type"]
    assert not is_replayed(first)
    assert len(system.openai.journal) == 1
    assert (await caller.standing()).spent == PRICE


async def test_a_large_answer_is_replayed_whole(system: System, caller: Caller) -> None:
    system.openai.always(Reply(pieces=("x" * 3_000_000,)))
    first = await caller.post(chat(), idempotency_key="large")
    again = await caller.post(chat(), path=on(system, 1), idempotency_key="large")
    assert (again.content, len(first.content) > 3_000_000) == (first.content, True)


async def test_another_body_under_the_same_key_is_refused(system: System, caller: Caller, held: Reply) -> None:
    running = asyncio.create_task(caller.post(chat(), idempotency_key="mine"))
    received = await system.openai.asked()
    for other in (chat("Something else."), chat(stream=True)):
        answer = await caller.post(other, path=on(system, 1), idempotency_key="mine")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (409, "idempotency_mismatch", "Idempotency-Key")
        assert (error["call_id"], answer.headers["x-should-retry"]) == (received.call_id, "false")
    held.released.set()
    assert (await running).status_code == 200
    assert (await caller.released()).calls == 1


async def test_a_key_of_somebody_else_is_another_key(system: System, caller: Caller) -> None:
    stranger = await system.caller()
    mine, theirs = [await one.post(chat(), idempotency_key="shared") for one in (caller, stranger)]
    assert (theirs.status_code, is_replayed(theirs)) == (200, False)
    assert theirs.headers["x-call-id"] != mine.headers["x-call-id"]
    assert len(system.openai.journal) == 2
    assert (await stranger.standing()).spent == PRICE


async def test_a_known_key_whose_answer_is_not_kept_any_more_is_told_of_its_call(
    system: System, caller: Caller
) -> None:
    first = await caller.post(chat(), idempotency_key="old")
    await forget_answers(system)
    second = await caller.post(chat(), idempotency_key="old")
    error = second.json()["error"]
    assert (second.status_code, error["code"]) == (409, "idempotency_conflict")
    assert second.headers["x-should-retry"] == "false"
    assert error["call_id"] == second.headers["x-call-id"] == first.headers["x-call-id"]
    gone = await resumed(caller, first.headers["x-call-id"])
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert (await caller.standing()).calls == 1


async def test_a_failed_call_frees_its_key_and_a_retry_calls_anew(system: System, caller: Caller) -> None:
    system.openai.replies(refusal(400, code="bad"), Reply())
    failed = await caller.post(chat(), idempotency_key="retry")
    assert failed.status_code == 400, failed.text
    again = await caller.post(chat(), path=on(system, 1), idempotency_key="retry")
    assert (again.status_code, is_replayed(again)) == (200, False)
    assert again.headers["x-call-id"] != failed.headers["x-call-id"]
    replayed = await caller.post(chat(), idempotency_key="retry")
    assert (replayed.content, is_replayed(replayed)) == (again.content, True)
    standing = await caller.released()
    assert (standing.calls, standing.spent) == (2, PRICE)


async def test_a_retry_of_a_stream_that_broke_is_whole_from_its_beginning(system: System, caller: Caller) -> None:
    system.openai.replies(Reply(cut_at=3), Reply())
    broken = await caller.post(chat(stream=True), idempotency_key="broken")
    assert '"code":"upstream_broken"' in broken.text
    again = await caller.post(chat(stream=True), path=on(system, 1), idempotency_key="broken")
    assert again.text.endswith("data: [DONE]\n\n")
    assert '"error"' not in again.text
    assert not is_replayed(again)
    standing = await caller.released()
    assert (standing.calls, standing.spent) == (2, PRICE)


async def test_who_waits_for_a_call_that_fails_is_told_its_error(system: System, caller: Caller) -> None:
    reply = Reply(status=400, body=b'{"error":{"message":"No.","code":"bad"}}', hold_at=0)
    system.openai.always(reply)
    first = asyncio.create_task(caller.post(chat(), idempotency_key="doomed"))
    received = await system.openai.asked()
    second = asyncio.create_task(caller.post(chat(), path=on(system, 1), idempotency_key="doomed"))
    await followed(system, received.call_id)
    reply.released.set()
    answers = [await first, await second]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()
    assert len(system.openai.journal) == 1
    assert (await caller.released()).spent == 0


async def followed(system: System, call_id: str) -> None:
    """Wait until some gateway listens for a call's frames."""

    async def look() -> bool:
        async with httpx2.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{system.hub.servers.ports.nats_http}/connz"
            answer = (await client.get(url, params={"subs": "true"})).json()
        return any(
            subjects.frames(call_id) in connection.get("subscriptions_list", ()) for connection in answer["connections"]
        )

    await until(look, what="a gateway listens for the call's frames")


async def test_a_client_that_leaves_does_not_end_a_call_with_a_key(system: System, caller: Caller) -> None:
    reply = Reply(hold_at=1)
    system.openai.always(reply)
    leaving = asyncio.create_task(caller.post(chat(), idempotency_key="lost"))
    received = await system.openai.asked()
    leaving.cancel()
    await asyncio.wait([leaving])
    second = asyncio.create_task(caller.post(chat(), idempotency_key="lost"))
    await followed(system, received.call_id)
    reply.released.set()
    answer = await second
    assert (answer.status_code, answer.headers["x-call-id"]) == (200, received.call_id)
    assert received.gone_at is None
    standing = await caller.released()
    assert (standing.calls, standing.spent) == (1, PRICE)


@pytest.mark.parametrize("megabytes", [0, 9])
async def test_a_call_with_a_key_is_made_though_its_client_left_before_a_router_took_it(
    system: System, megabytes: int
) -> None:
    rich = await system.caller("100000")
    body = {**chat(), "user": "u" * megabytes * 2**20}
    routers = [name for name in system.hub.processes.names if name.startswith("provider-router")]
    await system.hub.pause(*routers)
    try:
        leaving = asyncio.create_task(rich.post(body, idempotency_key="early"))

        async def reserved() -> bool:
            return (await rich.standing()).calls == 1

        await until(reserved, what="the call is in the books")
        leaving.cancel()
        await asyncio.wait([leaving])
    finally:
        await system.hub.resume(*routers)
    answer = await rich.post(body, path=on(system, 1), idempotency_key="early")
    assert (answer.status_code, is_replayed(answer)) == (200, True)
    standing = await rich.released()
    assert (standing.calls, len(system.openai.journal)) == (1, 1)
    assert (await rich.call(answer.headers["x-call-id"]))["outcome"] == "stop"


async def test_answers_are_kept_for_calls_that_asked_for_it_only(system: System, caller: Caller) -> None:
    bus = await system.hub.connect(PROVISIONER)

    async def stored(call_id: str) -> int:
        js = bus.jetstream()
        info = await js.stream_info(streams.FRAMES.name, subjects_filter=subjects.frames(call_id))
        return sum((info.state.subjects or {}).values())

    plain = await caller.post(chat(stream=True))
    kept = await caller.post(chat(stream=True), x_hub_resumable="true")
    keyed = await caller.post(chat(), idempotency_key="kept")
    counts = [await stored(answer.headers["x-call-id"]) for answer in (plain, kept, keyed)]
    await bus.close()
    assert counts[0] == 0
    assert all(counts[1:])
    assert "\nid: " not in plain.text


# ---- resume ------------------------------------------------------------------------------------------------------


async def test_a_stream_is_resumed_from_any_event_on_any_gateway(system: System, caller: Caller) -> None:
    first = await caller.post(chat(stream=True), x_hub_resumable="true")
    call_id = first.headers["x-call-id"]
    events = first.text.split("\n\n")[:-1]
    assert [int(re.findall(r"^id: (\d+)$", event, re.MULTILINE)[0]) for event in events] == list(
        range(1, len(events) + 1)
    )
    for seen in range(len(events) + 1):
        rest = await resumed(caller, call_id, str(seen), gateway=seen % 2)
        assert rest.status_code == 200
        assert rest.headers["content-type"].startswith("text/event-stream")
        assert rest.headers["x-call-id"] == call_id
        assert "".join(f"{event}\n\n" for event in events[:seen]) + rest.text == first.text
    assert (await resumed(caller, call_id)).text == first.text
    assert json.loads(events[-2].partition("data: ")[2].partition("\n")[0])["usage"]["credits"] == f"{PRICE:.10f}"
    assert (await caller.standing()).calls == 1


async def test_a_stream_is_resumed_while_it_runs_and_its_end_waits_for_the_books(
    system: System, caller: Caller, held: Reply
) -> None:
    async with system.http.stream(
        "POST", on(system, 0), json=chat(stream=True), headers={**caller.headers, "x-hub-resumable": "true"}
    ) as first:
        begun = await anext(first.aiter_raw())
    call_id = first.headers["x-call-id"]
    seen = begun.count(b"\nid: ")
    rest = asyncio.create_task(resumed(caller, call_id, str(seen)))
    await followed(system, call_id)
    held.released.set()
    whole = (await resumed(caller, call_id, gateway=0)).content
    assert begun + (await rest).content == whole
    assert whole.endswith(b"data: [DONE]\nid: 9\n\n")
    view = await caller.call(call_id)
    assert (view["state"], view["outcome"], Decimal(view["credits"])) == ("success", "stop", PRICE)


async def test_an_answer_that_is_no_stream_is_fetched_whole(system: System, caller: Caller) -> None:
    first = await caller.post(chat(), x_hub_resumable="true")
    again = await resumed(caller, first.headers["x-call-id"])
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == "application/json"


async def test_a_call_of_somebody_else_cannot_be_resumed(system: System, caller: Caller) -> None:
    first = await caller.post(chat(stream=True), x_hub_resumable="true")
    call_id = first.headers["x-call-id"]
    stranger = await system.caller()
    foreign, none = await resumed(stranger, call_id), await resumed(stranger, new_call_id())
    assert (foreign.status_code, none.status_code) == (404, 404)
    assert foreign.json() == none.json()
    owner = await system.http.get(on(system, 0, f"/api/v2/calls/{call_id}/stream"), headers=system.hub.headers)
    assert owner.status_code == 404
    unknown = await system.http.get(on(system, 0, f"/api/v2/calls/{call_id}/stream"))
    assert unknown.status_code == 401


async def test_a_call_that_did_not_ask_for_it_cannot_be_resumed(system: System, caller: Caller, held: Reply) -> None:
    running = asyncio.create_task(caller.post(chat(stream=True)))
    received = await system.openai.asked()
    assert (await resumed(caller, received.call_id)).status_code == 404
    held.released.set()
    assert (await running).status_code == 200
    assert (await resumed(caller, received.call_id)).status_code == 404


@pytest.mark.parametrize("position", ["-1", "1.5", "x", "9" * 40])
async def test_a_position_that_is_no_number_is_refused(caller: Caller, position: str) -> None:
    first = await caller.post(chat(stream=True), x_hub_resumable="true")
    answer = await resumed(caller, first.headers["x-call-id"], position)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert (await resumed(caller, "none", "1")).status_code == 404


async def test_a_stream_that_failed_is_resumed_with_its_error(system: System, caller: Caller) -> None:
    system.openai.always(Reply(cut_at=3))
    first = await caller.post(chat(stream=True), x_hub_resumable="true")
    again = await resumed(caller, first.headers["x-call-id"])
    assert again.text == first.text
    assert '"code":"upstream_broken"' in again.text
    assert "[DONE]" not in again.text
    assert (await caller.released()).spent == 0
