import json
from typing import Any

import pytest

from contracts.errors import ErrorCode, HubError
from contracts.events import Outcome
from contracts.usage import TOKENS_MAX, Usage, UsageSource
from provider_router import sse
from provider_router.adapters import chat_form, compatible_stream
from provider_router.adapters.adapter import Ending
from provider_router.adapters.compatible import CompatibleAdapter

ADAPTER = CompatibleAdapter()


def chunk(text: str = "", reason: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}
    return sse.event(json.dumps({"id": "c1", "created": 7, "model": "m", "choices": [choice], **members}).encode())


def usage_chunk(usage: Any) -> bytes:
    return chunk(choices=[], usage=usage)


def streamed(*events: bytes, include_usage: bool = True, choices: int = 1) -> tuple[bytes, Ending]:
    translation = ADAPTER.translation(include_usage=include_usage, choices=choices)
    passed = b"".join(translation.feed(event) for event in events)
    return passed, translation.end()


USED = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        (USED, Usage(input_tokens=10, output_tokens=5)),
        (
            {
                **USED,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(input_tokens=6, cache_read_tokens=4, output_tokens=3, reasoning_tokens=2),
        ),
        ({**USED, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}},
         Usage(input_tokens=10, output_tokens=5)),
        ({"prompt_tokens": 10.0, "completion_tokens": 5}, Usage(input_tokens=10, output_tokens=5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 18,
          "completion_tokens_details": {"reasoning_tokens": 3}},
         Usage(input_tokens=10, output_tokens=5, reasoning_tokens=3)),
        ({**USED, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}},
         Usage(input_tokens=1, output_tokens=USED["completion_tokens"], cache_read_tokens=4, cache_write_tokens=5)),
        ({**USED, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 7}},
         Usage(output_tokens=USED["completion_tokens"], cache_read_tokens=4, cache_write_tokens=6,
               source=UsageSource.ESTIMATED)),
        ({**USED, "prompt_tokens_details": {"cached_tokens": 11}},
         Usage(cache_read_tokens=10, output_tokens=5, source=UsageSource.ESTIMATED)),
        ({**USED, "prompt_tokens_details": {"cached_tokens": -1}},
         Usage(input_tokens=10, output_tokens=5, source=UsageSource.ESTIMATED)),
        ({**USED, "prompt_tokens_details": 4}, Usage(input_tokens=6, cache_read_tokens=4, output_tokens=5)),
        ({**USED, "completion_tokens_details": {"reasoning_tokens": 9}},
         Usage(input_tokens=10, reasoning_tokens=5, source=UsageSource.ESTIMATED)),
        ({**USED, "prompt_tokens": 10**30},
         Usage(input_tokens=TOKENS_MAX, output_tokens=5, source=UsageSource.ESTIMATED)),
        ({**USED, "prompt_tokens": -1}, None),
        ({**USED, "completion_tokens": 1.5}, None),
        ({**USED, "completion_tokens": "5"}, None),
        ({**USED, "completion_tokens": True}, None),
        ({"prompt_tokens": 10}, None),
        ({}, None),
        ([], None),
        ("x", None),
        (None, None),
    ],
)  # fmt: skip
def test_usage_is_made_disjoint_bounded_and_marked(given: Any, usage: Usage | None) -> None:
    assert chat_form.read_usage(json.dumps(given).encode()) == usage


@pytest.mark.parametrize("raw", [b"", b"{", b'{"prompt_tokens":NaN}', b'{"prompt_tokens":1e999,"completion_tokens":1}'])
def test_usage_that_is_no_json_is_none(raw: bytes) -> None:
    assert chat_form.read_usage(raw) is None


def test_usage_in_the_last_choices_chunk_becomes_a_chunk_of_its_own() -> None:
    _, ending = streamed(chunk("a"), chunk("", "stop", usage=USED, extra=1.0), sse.DONE)
    first, last = (json.loads(data) for _, data in sse.decode(ending.held.removesuffix(sse.DONE)))
    assert "usage" not in first
    assert first["extra"] == 1.0
    assert (last["id"], last["choices"], last["usage"]) == ("c1", [], USED)
    assert ending.splice_at is not None
    assert ending.held[ending.splice_at : ending.splice_at + 1] == b"}"
    assert ending.usage == Usage(input_tokens=10, output_tokens=5)


def test_cumulative_usage_in_every_chunk_passes_and_the_last_one_counts() -> None:
    early = chunk("a", usage={**USED, "completion_tokens": 1})
    passed, ending = streamed(early, chunk("", "stop"), usage_chunk(USED), sse.DONE)
    assert passed == early
    assert ending.usage == Usage(input_tokens=10, output_tokens=5)


def test_bytes_before_the_end_are_untouched() -> None:
    events = (
        b': hello\n\ndata: {"choices":[{"index":0,"delta":{"content":"\\"finish_reason\\":\\"x\\""}}],"n":1e400}\n\n'
    )
    passed, ending = streamed(events, chunk("", "stop"), sse.DONE)
    assert passed == events
    assert ending.outcome is Outcome.STOP


def test_done_is_added_where_it_is_missing() -> None:
    _, ending = streamed(chunk("a"), chunk("", "stop"), usage_chunk(USED))
    assert ending.held.endswith(sse.DONE)


def test_done_without_its_blank_line_is_understood() -> None:
    _, ending = streamed(chunk("a"), chunk("", "stop"), b"data: [DONE]\n")
    assert ending.held.endswith(chunk("", "stop") + sse.DONE)


def test_an_empty_finish_reason_is_none() -> None:
    passed, ending = streamed(chunk("a", ""), chunk("b", ""), chunk("", "stop"))
    assert passed == chunk("a", "") + chunk("b", "")
    assert ending.finish_reason == "stop"
    with pytest.raises(HubError):
        streamed(chunk("a", ""), sse.DONE)


@pytest.mark.parametrize("space", [" ", "  ", "\t"])
def test_blanks_around_names_and_values_change_nothing(space: str) -> None:
    events = [
        chunk("a", usage=None),
        chunk("b", usage=None),
        chunk("", "stop", usage=None),
        usage_chunk(USED),
        sse.DONE,
    ]
    spaced = [event.replace(b'": ', b'"' + space.encode() + b":" + space.encode()) for event in events]
    passed, ending = streamed(b"".join(spaced))
    assert passed == b"".join(spaced[:2])
    assert ending.held == b"".join(spaced[2:])
    assert ending.usage == Usage(input_tokens=10, output_tokens=5)


def test_done_without_a_finish_reason_never_reaches_the_client() -> None:
    translation = ADAPTER.translation(include_usage=True)
    assert translation.feed(chunk("a") + sse.DONE + chunk("b") + chunk("", "stop")) == chunk("a")
    with pytest.raises(HubError):
        translation.end()


def test_nothing_after_done_counts() -> None:
    passed, ending = streamed(chunk("", "stop"), sse.DONE + chunk("late"), chunk("later"))
    assert passed == b""
    assert b"late" not in ending.held


@pytest.mark.parametrize(
    "given",
    [None, {"prompt_tokens": -1, "completion_tokens": 1}, {}, {"prompt_tokens": 10**15, "completion_tokens": 1}],
)
def test_a_stream_without_usable_usage_gets_the_hubs(given: Any) -> None:
    events = [chunk("a"), chunk("", "stop"), *([] if given is None else [usage_chunk(given)]), sse.DONE]
    translation = ADAPTER.translation(include_usage=True)
    for event in events:
        translation.feed(event)
    ending = translation.end()
    if ending.usage is None:
        ending = translation.with_usage(ending, Usage(input_tokens=3, output_tokens=4, source=UsageSource.COUNTED))
    assert ending.usage is not None
    assert ending.usage.source is not UsageSource.REPORTED
    shown = [json.loads(data) for _, data in sse.decode(ending.held.removesuffix(sse.DONE))]
    assert [bool(chunk.get("usage")) for chunk in shown] == [False, True]
    assert 0 <= shown[-1]["usage"]["total_tokens"] <= 2 * TOKENS_MAX
    assert shown[-1]["usage"]["total_tokens"] == ending.usage.total_tokens
    assert shown[-1]["id"] == "c1"
    assert ending.splice_at is not None
    spliced = ending.held[: ending.splice_at] + b',"credits":"1"' + ending.held[ending.splice_at :]
    assert json.loads(sse.decode(spliced)[-2][1])["usage"]["credits"] == "1"


def test_with_several_choices_every_one_must_finish() -> None:
    def choice(index: int, reason: str | None) -> bytes:
        return chunk(choices=[{"index": index, "delta": {}, "finish_reason": reason}])

    passed, ending = streamed(choice(0, None), choice(1, None), choice(1, "length"), choice(0, "stop"), choices=2)
    assert passed == choice(0, None) + choice(1, None) + choice(1, "length") + choice(0, "stop")
    assert ending.held == sse.DONE
    with pytest.raises(HubError):
        streamed(choice(0, None), choice(1, None), choice(1, "length"), sse.DONE, choices=2)


@pytest.mark.parametrize(
    "error", [{"message": "boom", "type": "server_error", "code": "c"}, "boom", {"message": "boom", "code": 500}]
)
def test_an_error_object_in_mid_stream_is_an_error(error: Any) -> None:
    translation = ADAPTER.translation(include_usage=True)
    translation.feed(chunk("a"))
    with pytest.raises(HubError, match="boom") as raised:
        translation.feed(b"event: error\n" + sse.event(json.dumps({"error": error}).encode()))
    assert raised.value.code is ErrorCode.UPSTREAM_BROKEN
    if isinstance(error, dict):
        assert raised.value.provider_code == str(error["code"])


def test_an_error_of_null_is_none() -> None:
    passed, _ = streamed(chunk("a", error=None), chunk("", "stop", error=None))
    assert passed == chunk("a", error=None)


def test_an_error_in_an_answer_with_status_200_is_an_error() -> None:
    with pytest.raises(HubError, match="no luck") as raised:
        ADAPTER.answer(b'{"error":{"message":"no luck","code":"x"},"choices":[]}')
    assert (raised.value.code, raised.value.provider_code) == (ErrorCode.UPSTREAM_BROKEN, "x")


def test_an_endless_stream_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatible_stream, "ANSWER_BYTES_MAX", 1000)
    with pytest.raises(HubError) as raised:
        streamed(*[chunk("a")] * 100)
    assert raised.value.code is ErrorCode.UPSTREAM_BROKEN


def test_a_whole_answer_with_absurd_usage_is_bounded_and_marked() -> None:
    body = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": {**USED, "prompt_tokens": 10**15}}).encode()
    ending = ADAPTER.answer(body)
    assert ending.usage == Usage(input_tokens=TOKENS_MAX, output_tokens=5, source=UsageSource.ESTIMATED)
    assert json.loads(ending.held)["usage"]["prompt_tokens"] == TOKENS_MAX


def test_a_usage_that_stands_twice_is_still_spliced_at_the_right_place() -> None:
    body = json.dumps({"x": USED, "usage": USED, "choices": [{"finish_reason": "stop"}]}).encode()
    ending = ADAPTER.answer(body)
    assert ending.splice_at is not None
    spliced = json.loads(ending.held[: ending.splice_at] + b',"c":1' + ending.held[ending.splice_at :])
    assert spliced == {"x": USED, "usage": {**USED, "c": 1}, "choices": [{"finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("stop", Outcome.STOP),
        ("length", Outcome.LENGTH),
        ("content_filter", Outcome.CONTENT_FILTER),
        ("tool_calls", Outcome.TOOL_CALLS),
        ("function_call", Outcome.TOOL_CALLS),
        ("eos", Outcome.OTHER),
    ],
)
def test_every_finish_reason_has_its_outcome_and_the_raw_one_is_kept(reason: str, outcome: Outcome) -> None:
    _, ending = streamed(chunk("a"), chunk("", reason))
    assert (ending.finish_reason, ending.outcome) == (reason, outcome)


def test_what_is_no_object_is_refused_as_a_request() -> None:
    with pytest.raises(HubError) as raised:
        ADAPTER.request(b"[]", "m", stream=False)
    assert raised.value.code is ErrorCode.INVALID_JSON


def test_reported_usage_is_known_before_the_end() -> None:
    translation = ADAPTER.translation(include_usage=True)
    assert translation.reported() is None
    translation.feed(chunk("a", usage=USED))
    assert translation.reported() == Usage(input_tokens=10, output_tokens=5)
