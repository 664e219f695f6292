"""The same questions to every adapter, over fixtures written from the vendors' published types."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from contracts.errors import ErrorCode as Code
from contracts.errors import HubError
from contracts.usage import Usage, UsageSource
from provider_router import sse
from provider_router.adapters.adapter import Adapter, Capability, Ending, Translation
from provider_router.adapters.registry import ADAPTERS

FIXTURES = Path(__file__).parent / "fixtures"
CREATED = 1764000000
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-5", "demo": "echo"}
SPLICED = b',"credits":"0.0000000001"'


@dataclass(frozen=True)
class Case:
    adapter: Adapter
    folder: Path

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        return data

    @property
    def usage(self) -> Usage:
        return Usage(**self.data["expect"]["usage"])

    @property
    def choices(self) -> int:
        return int(self.data.get("choices", 1))

    @property
    def stream(self) -> bytes:
        return (self.folder / "stream.sse").read_bytes()

    def translation(self, *, include_usage: bool = True) -> Translation:
        return self.adapter.translation(include_usage=include_usage, choices=self.choices, created=CREATED)


CASES = [
    Case(adapter, folder) for adapter in ADAPTERS.values() for folder in sorted((FIXTURES / adapter.name).iterdir())
]


def cases(file: str) -> Callable[[Any], Any]:
    chosen = [case for case in CASES if (case.folder / file).exists()]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: f"{case.adapter.name}-{case.folder.name}")


def relay(translation: Translation, pieces: Iterable[bytes]) -> tuple[bytes, Ending]:
    passed = b"".join([translation.feed(piece) for piece in pieces])
    return passed, translation.end()


def chunks(block: bytes) -> list[dict[str, Any]]:
    return [json.loads(data) for _, data in sse.decode(block) if data != b"[DONE]"]


def text_of(parts: Iterable[dict[str, Any]], member: str) -> str:
    text = ""
    for part in parts:
        for choice in part["choices"]:
            said = choice[member]
            text += (said.get("reasoning_content") or "") + (said.get("content") or "")
            for call in said.get("tool_calls") or ():
                text += (call["function"].get("name") or "") + call["function"]["arguments"]
    return text


def spliced(ending: Ending) -> bytes:
    assert ending.splice_at is not None
    assert ending.held[ending.splice_at : ending.splice_at + 1] == b"}"
    return ending.held[: ending.splice_at] + SPLICED + ending.held[ending.splice_at :]


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("capability", Capability)
def test_every_claim_has_a_fixture_and_every_fixture_a_claim(name: str, capability: Capability) -> None:
    assert (FIXTURES / name / capability).is_dir() == (capability in ADAPTERS[name].capabilities)


@cases("case.json")
def test_every_fixture_names_its_source(case: Case) -> None:
    assert "types." in case.data["source"]


@cases("case.json")
def test_the_request_says_what_the_provider_documents(case: Case) -> None:
    given_ = case.data["request"]
    request = case.adapter.request(
        json.dumps(given_).encode(), MODELS[case.adapter.name], stream=bool(given_.get("stream"))
    )
    assert json.loads(request.body) == case.data["upstream"]


@cases("answer.json")
def test_the_fixture_of_an_answer_fits_the_vendors_type(case: Case) -> None:
    vendor = Message if case.adapter.name == "anthropic" else ChatCompletion
    vendor.model_validate_json((case.folder / "answer.json").read_bytes(), strict=True)


@cases("stream.sse")
def test_the_fixture_of_a_stream_fits_the_vendors_type(case: Case) -> None:
    if case.adapter.name == "anthropic":
        events = [data for name, data in sse.decode(case.stream) if name != "ping"]
        vendor: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    else:
        events = [data for _, data in sse.decode(case.stream) if data != b"[DONE]"]
        vendor = TypeAdapter(ChatCompletionChunk)
    for data in events:
        vendor.validate_json(data)


@cases("answer.json")
def test_a_whole_answer_keeps_its_text_its_end_and_its_usage(case: Case) -> None:
    body = (case.folder / "answer.json").read_bytes()
    ending = case.adapter.answer(body, created=CREATED)
    expect = case.data["expect"]
    assert (ending.finish_reason, ending.outcome) == (expect["finish_reason"], expect["outcome"])
    assert ending.usage == case.usage
    completion = ChatCompletion.model_validate_json(ending.held, strict=True)
    assert completion.usage is not None
    assert completion.usage.total_tokens == case.usage.total_tokens
    assert text_of([json.loads(ending.held)], "message") == expect["text"]
    assert case.adapter.answer_text(body) == expect["text"]
    assert json.loads(spliced(ending))["usage"]["credits"] == "0.0000000001"
    if case.adapter.name != "anthropic":
        assert ending.held == body


@cases("answer.json")
def test_a_whole_answer_takes_counted_usage(case: Case) -> None:
    counted = Usage(input_tokens=3, output_tokens=4, source=UsageSource.COUNTED)
    ending = case.adapter.with_usage(case.adapter.answer((case.folder / "answer.json").read_bytes()), counted)
    assert ending.usage == counted
    usage = json.loads(spliced(ending))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["credits"]) == (3, 4, "0.0000000001")


@cases("stream.sse")
def test_a_stream_holds_back_its_end_until_it_is_settled(case: Case) -> None:
    translation = case.translation()
    passed, ending = relay(translation, [case.stream])
    expect = case.data["expect"]
    assert translation.complete
    assert (ending.finish_reason, ending.outcome) == (expect["finish_reason"], expect["outcome"])
    assert ending.usage == case.usage
    assert text_of(chunks(passed), "delta") == expect["text"]
    assert translation.delivered_text() == expect["text"]
    assert b"[DONE]" not in passed.replace(b"[DONE]\\n", b"")
    assert ending.held.endswith(sse.DONE)
    tail = chunks(ending.held)
    assert tail[-1]["choices"] == []
    assert tail[-1]["usage"]["total_tokens"] == case.usage.total_tokens
    if case.choices == 1:
        assert all(choice["finish_reason"] is None for chunk in chunks(passed) for choice in chunk["choices"])
        assert tail[0]["choices"][0]["finish_reason"] is not None
    for chunk in (*chunks(passed), *tail):
        ChatCompletionChunk.model_validate(chunk)
        assert chunk["created"] == CREATED
    assert chunks(spliced(ending))[-1]["usage"]["credits"] == "0.0000000001"


@cases("stream.sse")
def test_without_include_usage_the_client_gets_no_usage_chunk(case: Case) -> None:
    passed, ending = relay(case.translation(include_usage=False), [case.stream])
    assert ending.splice_at is None
    assert ending.usage == case.usage
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks(passed + ending.held))


@cases("stream.sse")
def test_a_stream_cut_into_single_bytes_is_the_same_stream(case: Case) -> None:
    whole = relay(case.translation(), [case.stream])
    assert relay(case.translation(), [case.stream[i : i + 1] for i in range(len(case.stream))]) == whole


@cases("stream.sse")
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_stream_cut_anywhere_is_the_same_stream(case: Case, data: st.DataObject) -> None:
    stream = case.stream
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert relay(case.translation(), pieces) == relay(case.translation(), [stream])


@cases("stream.sse")
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_other_line_ends_and_a_byte_order_mark_change_nothing(case: Case, line_end: bytes) -> None:
    other = b"\xef\xbb\xbf" + case.stream.replace(b"\n", line_end)
    whole = relay(case.translation(), [case.stream])
    assert relay(case.translation(), [other]) == whole
    assert relay(case.translation(), [other[i : i + 1] for i in range(len(other))]) == whole


@cases("stream.sse")
def test_a_stream_that_stops_after_any_event_but_the_last_ones_is_never_a_clean_end(case: Case) -> None:
    events = [event + b"\n\n" for event in sse.split(case.stream)]
    finals = [i for i, event in enumerate(events) if b'"stop_reason":"' in event or _finishes(event)]
    for cut in range(finals[-1] + 1):
        translation = case.translation()
        translation.feed(b"".join(events[:cut]))
        with pytest.raises(HubError) as error:
            translation.end()
        assert error.value.code is Code.UPSTREAM_BROKEN


@cases("stream.sse")
def test_a_stream_cut_inside_an_event_is_never_a_clean_end(case: Case) -> None:
    last_event_at = len(case.stream) - len(sse.split(case.stream)[-1]) - 2
    boundaries = {0}
    for event in sse.split(case.stream):
        boundaries.add(max(boundaries) + len(event) + 2)
    for cut in range(1, last_event_at):
        if cut in boundaries:
            continue
        translation = case.translation()
        translation.feed(case.stream[:cut])
        with pytest.raises(HubError):
            translation.end()


@cases("stream.sse")
def test_a_stream_cut_short_by_the_hub_ends_properly(case: Case) -> None:
    events = [event + b"\n\n" for event in sse.split(case.stream)]
    translation = case.translation()
    passed = b"".join(translation.feed(event) for event in events[:1])
    tail = translation.cut("length", "credit_exhausted")
    assert tail.endswith(sse.DONE)
    said = chunks(tail)
    assert {choice["finish_details"]["type"] for chunk in said for choice in chunk["choices"]} == {"credit_exhausted"}
    assert {choice["finish_reason"] for chunk in said for choice in chunk["choices"]} == {"length"}
    assert {chunk["id"] for chunk in said} == {chunk["id"] for chunk in chunks(passed)}
    for chunk in said:
        ChatCompletionChunk.model_validate(chunk)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(
    ("status", "code", "our_status"),
    [
        (400, Code.UPSTREAM_REJECTED, 400),
        (404, Code.UPSTREAM_REJECTED, 404),
        (409, Code.UPSTREAM_REJECTED, 409),
        (413, Code.UPSTREAM_REJECTED, 413),
        (422, Code.UPSTREAM_REJECTED, 422),
        (401, Code.UPSTREAM_AUTHENTICATION, 502),
        (403, Code.UPSTREAM_AUTHENTICATION, 502),
        (402, Code.UPSTREAM_UNAVAILABLE, 502),
        (408, Code.UPSTREAM_TIMEOUT, 504),
        (429, Code.UPSTREAM_RATE_LIMITED, 429),
        (500, Code.UPSTREAM_UNAVAILABLE, 502),
        (503, Code.UPSTREAM_UNAVAILABLE, 502),
        (529, Code.UPSTREAM_UNAVAILABLE, 502),
        (302, Code.UPSTREAM_BROKEN, 502),
        (204, Code.UPSTREAM_BROKEN, 502),
    ],
)
def test_every_error_status_has_its_code(name: str, status: int, code: Code, our_status: int) -> None:
    body = b'{"type":"error","error":{"type":"some_error","message":"No, because sk-proj-abcdef123456.","code":"c1"}}'
    error = ADAPTERS[name].error(status, {"content-type": "application/json", "retry-after": "7"}, body)
    assert (error.code, error.status) == (code, our_status)
    assert "abcdef" not in error.message
    assert error.retry_after_s == (7.0 if status in {429, 402, 500, 503, 529} else None)
    if code is Code.UPSTREAM_REJECTED:
        assert (error.message, error.provider_code, error.provider_type) == (
            "No, because [redacted].",
            "c1",
            "some_error",
        )
    if code is Code.UPSTREAM_AUTHENTICATION:
        assert "because" not in error.message


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"choices":[]}', b'{"choices":{}}', b"\xff", b"NaN"])
def test_an_answer_of_another_form_is_broken(name: str, body: bytes) -> None:
    with pytest.raises(HubError) as error:
        ADAPTERS[name].answer(body)
    assert error.value.code is Code.UPSTREAM_BROKEN


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("event", [b"data: {\n\n", b"data: []\n\n", b"data: x\n\n"])
def test_a_stream_of_another_form_is_broken(name: str, event: bytes) -> None:
    translation = ADAPTERS[name].translation(include_usage=True)
    with pytest.raises(HubError) as error:
        relay(translation, [event])
    assert error.value.code is Code.UPSTREAM_BROKEN


def _finishes(event: bytes) -> bool:
    return any(choice["finish_reason"] for chunk in chunks(event) for choice in chunk.get("choices", ()))
