"""One chat request on one connection, over raw sockets: framing, limits, pipelining, leaving, broken streams."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import ProviderView, RateView, Snapshot
from contracts.rpc.metering import SettledCall
from gateway.admission.prices import Prices
from gateway.api.chat import Chat
from gateway.auth import access_keys
from gateway.auth.principals import Principals
from gateway.http_protocol import Limits, limited
from gateway.identity.store import KeyRow
from gateway.open_call import OpenCall
from gateway.relay import with_credits
from gateway.settings import Settings
from runtime.telemetry import Tracing

PEPPER = b"p" * 32
KEY = access_keys.new_access_key()
BODY = json.dumps({"model": "demo/echo", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps({"model": "demo/echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
ANSWER = b'{"id":"a","usage":{"prompt_tokens":1}}'


@dataclass
class Calls:
    """Stands where reserver and dispatcher stand: the test plays the rest of the system."""

    opened: asyncio.Queue[OpenCall] = field(default_factory=asyncio.Queue)
    closed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    left_event: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def next_number(self) -> int:
        return 1

    def open(self, _call: OpenCall) -> None:
        self.count += 1

    def close(self, call: OpenCall) -> None:
        self.count -= 1
        self.closed.append(call.call_id)

    def left(self, call: OpenCall) -> None:
        self.gone.append(call.call_id)
        self.left_event.set()

    def reserve(self, call: OpenCall) -> None:
        self.opened.put_nowait(call)


def _settle(call: OpenCall, held: bytes = ANSWER, splice_at: int | None = 36) -> None:
    call.held, call.splice_at = held, splice_at
    call.settled = SettledCall(call.call_id, "success", "0.0000010000")
    call.wake()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
async def port(calls: Calls) -> AsyncIterator[int]:
    settings = Settings(
        nats_url=SecretStr("nats://x"),
        database_url=SecretStr("postgresql://x"),
        key_pepper=SecretStr(PEPPER.decode()),
        body_bytes_max=4096,
        body_timeout_s=0.3,
        welcome_credits=Decimal(0),
    )
    row = KeyRow(
        KEY.id, access_keys.digest(PEPPER, KEY.text.encode()), "did:abt:u", "acct", "member", "", revoked=False
    )

    async def load(ids: Any) -> dict[str, KeyRow]:
        return {key: row for key in ids if key == KEY.id}

    async def mark(_used: Any) -> None:
        return

    async def snapshot() -> Snapshot:
        rate = RateView(rate_id="r", pattern="demo/*", input="0.1", output="0.2", source="demo", effective_at="")
        return Snapshot(
            revision=1, providers=(ProviderView(name="demo", kind="demo", models=("echo",)),), rates=(rate,)
        )

    prices = Prices(snapshot, billing="credit", unpriced="refuse")
    await prices.refresh()
    principals = Principals(load, mark, PEPPER)
    principals.established()
    chat = Chat(settings, "gateway-x", principals, prices, calls, calls, Tracing("gateway"))  # type: ignore[arg-type]
    config = uvicorn.Config(
        _nothing, port=0, http=limited(Limits(), chat), lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    server.force_exit = True
    await task


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def _request(body: bytes, *, version: str = "1.1", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {KEY.text}\r\n"
        f"content-type: application/json\r\ncontent-length: {size}\r\n{headers}\r\n"
    ).encode() + body


async def _exchange(port: int, *sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
    return reader, writer


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ", 2)[1])
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:-2])
    }
    if "content-length" in headers:
        return status, headers, await reader.readexactly(int(headers["content-length"]))
    return status, headers, b""


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readline(), 16)
    data = await reader.readexactly(size)
    assert await reader.readexactly(2) == b"\r\n"
    return data


async def test_a_json_answer_waits_for_the_books_and_keeps_the_connection(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(BODY, headers="x-request-id: mine\r\n"))
    for _ in range(2):
        call = await calls.opened.get()
        _settle(call)
        status, headers, body = await _answer(reader)
        assert (status, headers["x-call-id"], headers["content-type"]) == (200, call.call_id, "application/json")
        assert json.loads(body)["usage"]["credits"] == "0.0000010000"
        writer.write(_request(BODY))
    assert headers["x-request-id"].startswith("req_")
    writer.close()


async def test_a_stream_is_written_as_it_comes_and_its_tail_after_the_books(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(STREAM))
    call = await calls.opened.get()
    call.chunks.append(b"data: 1\n\n")
    call.wake()
    status, headers, _ = await _answer(reader)
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert await _chunk(reader) == b"data: 1\n\n"
    _settle(call, b"data: [DONE]\n\n", None)
    assert await _chunk(reader) == b"data: [DONE]\n\n"
    assert await _chunk(reader) == b""
    assert calls.closed == [call.call_id]
    writer.close()


async def test_a_resumable_stream_has_numbered_events(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(STREAM, headers="x-hub-resumable: true\r\n"))
    call = await calls.opened.get()
    assert call.header.kept
    assert call.reserve.idempotency_key is None
    call.chunks.append(b"data: 1\n\ndata: 2\n\nda")
    call.wake()
    await _answer(reader)
    assert await _chunk(reader) == b"data: 1\nid: 1\n\ndata: 2\nid: 2\n\n"
    call.chunks.append(b"ta: 3")
    call.wake()
    _settle(call, b"\n\ndata: [DONE]\n\n", None)
    assert await _chunk(reader) == b"data: 3\nid: 3\n\ndata: [DONE]\nid: 4\n\n"
    assert await _chunk(reader) == b""
    writer.close()


async def test_an_ordinary_call_is_not_kept(port: int, calls: Calls) -> None:
    _, writer = await _exchange(port, _request(BODY, headers="x-hub-resumable: false\r\n"))
    call = await calls.opened.get()
    assert not call.header.kept
    assert call.reserve.body_digest == ""
    writer.close()


async def test_a_joined_call_is_answered_as_the_other_one_and_marked(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(BODY, headers="idempotency-key: k\r\n"))
    call = await calls.opened.get()
    assert call.header.kept
    call.joined_call_id = "other"
    _settle(call)
    status, headers, _ = await _answer(reader)
    assert (status, headers["x-call-id"], headers["idempotent-replayed"]) == (200, "other", "true")
    writer.close()


async def test_a_stream_that_fails_after_its_first_byte_ends_with_an_error_event(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(STREAM))
    call = await calls.opened.get()
    call.chunks.append(b"data: 1\n\n")
    call.fail(HubError(ErrorCode.UPSTREAM_BROKEN, "cut off"))
    await _answer(reader)
    assert await _chunk(reader) == b"data: 1\n\n"
    event = await _chunk(reader)
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_broken"
    assert await _chunk(reader) == b""
    writer.close()


async def test_a_call_that_failed_is_never_finished_as_success(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(STREAM))
    call = await calls.opened.get()
    call.fail(HubError(ErrorCode.STALE, "closed"))
    _settle(call, b"data: [DONE]\n\n", None)
    status, _, body = await _answer(reader)
    assert (status, json.loads(body)["error"]["code"]) == (502, "stale")
    writer.close()


async def test_http_1_0_gets_its_stream_unframed_and_the_end_of_the_connection(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(STREAM, version="1.0"))
    call = await calls.opened.get()
    _settle(call, b"data: [DONE]\n\n", None)
    status, headers, _ = await _answer(reader)
    assert (status, headers["connection"]) == (200, "close")
    assert await reader.read() == b"data: [DONE]\n\n"
    writer.close()


async def test_a_pipelined_request_waits_for_the_answer_before_it(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(BODY) + _request(BODY))
    first = await calls.opened.get()
    assert calls.opened.empty()
    _settle(first)
    assert (await _answer(reader))[1]["x-call-id"] == first.call_id
    second = await calls.opened.get()
    _settle(second)
    assert (await _answer(reader))[1]["x-call-id"] == second.call_id
    writer.close()


async def test_a_body_that_comes_in_pieces_is_joined(port: int, calls: Calls) -> None:
    whole = _request(BODY)
    reader, writer = await _exchange(port, whole[:200], whole[200:250], whole[250:])
    call = await calls.opened.get()
    assert call.body == BODY
    _settle(call)
    assert (await _answer(reader))[0] == 200
    writer.close()


async def test_a_client_that_expects_100_continue_gets_it(port: int, calls: Calls) -> None:
    reader, writer = await _exchange(port, _request(b"", headers="expect: 100-continue\r\n", length=len(BODY)))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    _settle(await calls.opened.get())
    assert (await _answer(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (_request(b"", length=5000), 413, "payload_too_large"),
        (_request(b"{", length=100), 408, "request_timeout"),
        (_request(b"{"), 400, "invalid_json"),
        (_request(BODY, headers="idempotency-key: " + "k" * 300 + "\r\n"), 400, "invalid_request"),
        (_request(BODY, headers="x-hub-resumable: maybe\r\n"), 400, "invalid_request"),
        (_request(BODY).replace(KEY.text.encode(), b"wrong"), 401, "invalid_api_key"),
        (_request(BODY.replace(b"demo/echo", b"other")), 404, "model_not_found"),
    ],
    ids=["too large", "slow body", "no JSON", "long key", "odd wish", "wrong key", "unknown model"],
)
async def test_refusals_answer_with_their_status(
    port: int, calls: Calls, request_bytes: bytes, status: int, code: str
) -> None:
    reader, writer = await _exchange(port, request_bytes)
    answer = await _answer(reader)
    assert (answer[0], json.loads(answer[2])["error"]["code"]) == (status, code)
    assert calls.opened.empty()
    writer.close()


async def test_a_chunked_body_above_the_limit_is_413(port: int) -> None:
    head = _request(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    reader, writer = await _exchange(port, head, b"1000\r\n" + b" " * 4096 + b"\r\n", b"10\r\n" + b" " * 16 + b"\r\n")
    assert (await _answer(reader))[0] == 413
    writer.close()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_client_that_leaves_cancels_its_call_once(port: int, calls: Calls, answered: bool) -> None:
    reader, writer = await _exchange(port, _request(STREAM))
    call = await calls.opened.get()
    if answered:
        call.chunks.append(b"data: 1\n\n")
        call.wake()
        await _answer(reader)
    writer.close()
    await calls.left_event.wait()
    assert calls.gone == [call.call_id]
    assert calls.closed == [call.call_id]
    _settle(call)  # too late: nobody is written to


@pytest.mark.parametrize(("usage", "comma"), [(b'{"a":1}', True), (b"{}", False), (b"{ \n }", False)])
def test_credits_go_into_the_usage_object_whatever_it_holds(usage: bytes, comma: bool) -> None:
    held = b'{"usage":' + usage + b"}"
    settled = SettledCall("id", "success", "12.3400000000")
    body = json.loads(with_credits(held, len(held) - 2, settled))
    assert body["usage"]["credits"] == "12.3400000000"
    assert body["usage"]["aigneHubCredits"] == 12.34
    assert ("a" in body["usage"]) is comma
