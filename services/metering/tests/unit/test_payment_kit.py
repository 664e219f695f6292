"""Requests equal the recorded ones; every answer that is plausible is understood; amounts are exact."""

import asyncio
import json
from contextlib import suppress
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payment_kit.faults import DuplicateForm, duplicate
from pydantic import SecretStr, ValidationError

from contracts.money import PLACES
from metering.payment_kit.amounts import AmountError, from_smallest, same_value, to_decimal_text, to_smallest
from metering.payment_kit.circuit import FAILURES_MAX, Circuit, backoff_s
from metering.payment_kit.client import Answer, PaymentKit, PaymentKitError
from metering.payment_kit.connections import Connections, NoAnswerError, NotConnectedError
from metering.payment_kit.events import MeterEvent, Result, before_answer, judge
from metering.payment_kit.outbox import customer_did
from metering.settings import Settings
from runtime.component_call import AppKey

FIXTURE = json.loads((Path(__file__).parents[4] / "tests/payment_kit/fixtures/payment-kit.json").read_text("utf-8"))
CASES = [{"what": call["what"], **request} for call in FIXTURE["calls"] for request in call["requests"]]
EVENT = MeterEvent(
    UUID("01936f6a-0000-7000-8000-000000000001"), "mc_01936f6a-0000-7000-8000-000000000001", "z1customer", "zNKapp",
    Decimal("0.0042000000"), 1_750_000_000, 3, 120,
)  # fmt: skip
CREDITS = st.integers(0, 10**27).map(lambda units: Decimal(units).scaleb(-10))


def kit(*, livemode: bool = True) -> PaymentKit:
    key = AppKey.read(FIXTURE["app"]["secretKeyHex"])
    http = Connections("http://payment", asyncio.Semaphore(1), 1.0)
    return PaymentKit("http://payment", key, FIXTURE["callerComponentDid"], livemode, http, lambda: FIXTURE["clock"])


def answer(status: int, document: Any, **headers: str) -> Answer:
    return Answer(status, headers, document if isinstance(document, bytes) else json.dumps(document).encode())


def created(**changes: Any) -> dict[str, Any]:
    return {
        "id": "mev_1",
        "identifier": EVENT.identifier,
        "payload": {"customer_id": "cus_1", "value": "0.0042"},
    } | changes


@pytest.mark.parity(45, 59)
@pytest.mark.parametrize("case", CASES, ids=itemgetter("what"))
def test_every_recorded_request_is_made_byte_by_byte(case: dict[str, Any]) -> None:
    split = urlsplit(case["url"])
    query = dict(parse_qsl(split.query, keep_blank_values=True))
    livemode = query.pop("livemode") == "true"
    body = json.loads(case["bodyText"]) if case["bodyText"] else None
    request = kit(livemode=livemode).request(case["method"], split.path, query, body)
    assert (request.method, request.target) == (case["method"], case["url"])
    assert request.body.decode() == case["bodyText"]
    ours = {"user-agent", "x-blocklet-server-version", "host", "accept-encoding", "content-length"}
    recorded = {name: value for name, value in case["headers"].items() if name not in ours}
    assert {name: request.headers.get(name) for name in recorded} == recorded


def test_a_report_has_the_recorded_members_in_their_order() -> None:
    (recorded,) = [case for case in CASES if case["what"] == "meterEvents.create (as the hub reports usage)"]
    wanted = json.loads(recorded["bodyText"])
    ours = EVENT.body("agent-hub-ai-meter")
    assert list(ours) == list(wanted)
    wanted |= {"identifier": EVENT.identifier, "metadata": {"appId": "zNKapp"}}
    wanted["payload"]["customer_id"] = "z1customer"
    assert ours == wanted


@pytest.mark.parametrize("form", get_args(DuplicateForm))
def test_a_known_identifier_is_recognised_in_every_form(form: DuplicateForm) -> None:
    judged = judge(EVENT, answer(*duplicate(form, created())))
    assert judged.result is (Result.SENT if form == "same_event" else Result.LOOK_UP)


@pytest.mark.parametrize(
    ("given_", "result"),
    [
        (answer(201, created()), Result.SENT),
        (answer(200, {"id": "mev_1"}), Result.SENT),
        (answer(200, created(payload={"value": "0.00420"})), Result.SENT),
        (answer(200, created(payload={"value": "0.0043"})), Result.PARKED),
        (answer(200, created(payload={"value": "NaN"})), Result.PARKED),
        (answer(200, created(payload={"value": 0.0042})), Result.PARKED),
        (answer(200, created(identifier="other")), Result.PARKED),
        (answer(200, b"<html>sign in</html>"), Result.PARKED),
        (answer(200, []), Result.PARKED),
        (answer(302, b"", location="/login"), Result.PARKED),
        (answer(400, {"error": "value must be positive"}), Result.PARKED),
        (answer(422, {"errors": [{"message": "no"}]}), Result.PARKED),
        (answer(401, {"error": "verify sig failed"}), Result.REFUSED),
        (answer(403, {}), Result.REFUSED),
        (answer(404, {"error": "Meter not found"}), Result.REFUSED),
        (answer(408, {}), Result.RETRY),
        (answer(425, {}), Result.RETRY),
        (answer(429, {}, **{"retry-after": "7"}), Result.RETRY),
        (answer(500, b"<html>oops</html>"), Result.RETRY),
        (answer(503, {"error": {"message": "down"}}), Result.RETRY),
    ],
)  # fmt: skip
def test_each_answer_has_its_consequence(given_: Answer, result: Result) -> None:
    assert judge(EVENT, given_).result is result


def test_retry_after_is_heard() -> None:
    assert judge(EVENT, answer(429, {}, **{"retry-after": "7"})).retry_after_s == 7
    assert judge(EVENT, answer(503, {}, **{"retry-after": "-7"})).retry_after_s == 0


def test_an_answer_that_never_came_may_still_be_worked_on() -> None:
    assert before_answer(PaymentKitError("silent", transient=True)).may_run_on
    assert not before_answer(PaymentKitError("unreachable", was_sent=False, transient=True)).may_run_on


@pytest.mark.parametrize("reason", ["redirect", "no_json", "no_meter", "no_list", "too_large"])
def test_a_row_is_not_parked_for_what_went_wrong_before_its_post(reason: str) -> None:
    assert before_answer(PaymentKitError(reason)).result is Result.REFUSED


@given(CREDITS)
def test_amounts_go_out_and_come_back_unchanged(value: Decimal) -> None:
    text = to_decimal_text(value.quantize(PLACES))
    assert "e" not in text.lower()
    assert same_value(value, text)
    assert from_smallest(to_smallest(value, 10), 10, owed=False) == value


@given(st.integers(0, 10**40), st.integers(10, 36))
def test_finer_currencies_are_never_rounded_in_favour_of_spending(units: int, places: int) -> None:
    exact = Decimal(units).scaleb(-places)
    if exact < Decimal("1e18"):
        assert from_smallest(str(units), places, owed=False) <= exact <= from_smallest(str(units), places, owed=True)


@pytest.mark.parametrize("text", ["-1", "1.5", "1e3", "", "NaN", "9" * 40, 1.5, True, [], "\uff11"])
def test_what_is_no_amount_is_refused(text: Any) -> None:
    with pytest.raises(AmountError):
        from_smallest(text, 10, owed=False)


@given(st.text(max_size=12) | st.floats() | st.none())
def test_no_value_that_comes_back_breaks_the_comparison(theirs: Any) -> None:
    try:
        assert same_value(Decimal("1.5"), theirs) is (Decimal(theirs) == Decimal("1.5"))
    except AmountError:
        assert (
            not isinstance(theirs, str)
            or not theirs.replace(".", "").isdecimal()
            or not theirs.isascii()
            or (theirs.startswith(".") or theirs.endswith(".") or theirs.count(".") > 1)
        )


def test_the_circuit_opens_after_failures_and_closes_after_one_success() -> None:
    now = [100.0]
    circuit = Circuit(lambda: now[0])
    for _ in range(FAILURES_MAX):
        assert circuit.admits(8) == 8
        circuit.failed()
    assert circuit.admits(8) == 0
    now[0] += 1.0
    assert circuit.admits(8) == 1, "one call shows whether it works again"
    assert circuit.admits(8) == 0, "and nobody else asks meanwhile"
    circuit.unused()
    assert circuit.admits(8) == 1, "a probe that came to nothing is followed by another"
    circuit.failed()
    assert circuit.admits(8) == 0
    now[0] += 60.0
    assert circuit.admits(8) == 1
    circuit.succeeded()
    assert (circuit.admits(8), circuit.is_closed) == (8, True)


def test_the_circuit_waits_as_long_as_it_is_asked_to() -> None:
    now = [0.0]
    circuit = Circuit(lambda: now[0])
    circuit.failed(retry_after_s=30)
    assert circuit.admits(8) == 0
    now[0] = 30.0
    assert circuit.admits(8) == 8


def test_back_off_grows_to_its_bound() -> None:
    waits = [backoff_s(tries, 300, lambda: 1.0) for tries in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[-1] == 300
    assert backoff_s(3, 300, lambda: 0.0) == backoff_s(3, 300, lambda: 1.0) / 2


def test_an_account_is_named_by_its_address() -> None:
    assert customer_did("did:abt:z1abc") == customer_did("z1abc") == "z1abc"
    assert customer_did("team:a") == "team:a"


@pytest.mark.parametrize(
    "changes",
    [
        {"payment_kit_url": "https://pay.test"},
        {"payment_kit_url": "ftp://pay.test", "payment_kit_app_key": "11" * 32},
        {"payment_kit_app_key": "short"},
        {"payment_kit_unit": "EUR"},
    ],
)
def test_wrong_settings_are_refused_without_showing_the_key(changes: dict[str, str]) -> None:
    given_ = {"nats_url": SecretStr("nats://x"), "database_url": SecretStr("postgresql://x")}
    with pytest.raises(ValidationError):
        Settings.model_validate(given_ | changes)


async def answered(raw: bytes, *, timeout_s: float = 5.0) -> tuple[Any, list[bytes]]:
    """What an exchange makes of the bytes that a server writes before it hangs up, and what the server had read."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(raw)
        if timeout_s < 1:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connections = Connections(f"http://127.0.0.1:{port}/base", asyncio.Semaphore(2), timeout_s)
    try:
        return await connections.exchange("POST", "/base/x?a=1", {"accept": "*/*"}, b""), asked
    finally:
        connections.close()
        server.close()


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200, b"{}"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n<html>", 502, b"<html>"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", 201, b""),
        (b"HTTP/1.1 302 Found\r\nlocation: /y\r\ncontent-length: 0\r\n\r\n", 302, b""),
    ],
)
async def test_answers_are_read_in_every_framing(raw: bytes, status: int, body: bytes) -> None:
    received, asked = await answered(raw)
    assert (received.status, received.body) == (status, body)
    assert asked[0].startswith(b"POST /base/x?a=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert asked[0].endswith(b"accept: */*\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"SSH-2.0-nothing we know\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}" * 2,
        b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n" + b"x" * (9 * 1024 * 1024),
    ],
    ids=["nothing", "half a body", "half the chunks", "another protocol", "two answers", "too much"],
)
async def test_half_an_answer_leaves_the_request_in_doubt(raw: bytes) -> None:
    with pytest.raises(NoAnswerError):
        await answered(raw)


async def test_a_connection_is_used_until_its_server_wants_no_more() -> None:
    made: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while b"/last" not in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connections = Connections(f"http://127.0.0.1:{port}", asyncio.Semaphore(2), 5.0)
    try:
        for path, expected in (("/a", 1), ("/b", 1), ("/last", 1), ("/c", 2), ("/d", 2)):
            assert (await connections.exchange("GET", path, {}, b"")).body == b"{}"
            assert len(made) == expected, path
    finally:
        connections.close()
        server.close()


async def test_a_server_that_says_nothing_is_waited_for_only_so_long() -> None:
    with pytest.raises(NoAnswerError, match="Timeout"):
        await answered(b"HTTP/1.1 200 OK\r\n", timeout_s=0.2)


async def test_where_nobody_listens_nothing_was_sent() -> None:
    connections = Connections("http://127.0.0.1:1", asyncio.Semaphore(1), 1.0)
    with pytest.raises(NotConnectedError):
        await connections.exchange("GET", "/", {}, b"")
