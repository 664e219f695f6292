"""The table "Bad input" for chat bodies, and the look against Python's own JSON."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ErrorCode, HubError
from gateway.admission.chat_body import json_schema
from gateway.admission.peek import DEPTH_MAX, check_content_type, depth_exceeds, peek

USER = {"role": "user", "content": "hi"}
GOOD: dict[str, Any] = {"model": "openai/gpt-4o", "messages": [USER]}


def _body(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def _without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def _refusal(body: bytes) -> HubError:
    with pytest.raises(HubError) as caught:
        peek(body)
    return caught.value


def test_reads_what_admission_needs() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    body = _body(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
        stream=True,
        stream_options={"include_usage": True},
        n=3,
        max_tokens=100,
        max_completion_tokens=50,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        temperature=0.5,
        top_p=1,
        stop=["a", "b"],
        seed=-5,
        unknown={"anything": [1, None, "x"]},
    )
    seen = peek(body)
    assert seen.model == "openai/gpt-4o"
    assert (seen.stream, seen.include_usage, seen.choices, seen.max_output_tokens) == (True, True, 3, 50)
    assert (seen.media_parts, seen.tools, seen.body_bytes) == (2, True, len(body))
    assert seen.inline_bytes == len('"data:image/png;base64,AAAA"') + len('"AAAA"')


def test_of_members_with_one_name_the_last_counts() -> None:
    assert peek(b'{"model":"a","mod\\u0065l":"b","messages":[{"role":"user","content":"x"}]}').model == "b"


@pytest.mark.parametrize(
    "filler",
    [b"{}", b'{"a":1}', b'"\\n\\u00e9"', b'"\\ud83d\\ude00"', b'"\\\\u0000"', b"[[[1]]]", b'"model"', b'""'],
    ids=["objects", "members", "escapes", "pairs", "looks like NUL", "lists", "names", "empty"],
)
def test_a_large_body_takes_time_in_proportion(filler: bytes) -> None:
    started = time.perf_counter()
    count = 4_000_000 // len(filler)
    body = VALUE % (b"[" + b",".join([filler] * count) + b"]")
    peek(body)
    wrong = body.replace(b'"role":"user"', b'"role":"boss"')
    assert _refusal(wrong).param == "messages[0].role"
    assert _refusal(body + b"x").code is ErrorCode.INVALID_JSON
    assert time.perf_counter() - started < 5.0


def test_a_wrong_field_before_broken_json_is_still_broken_json() -> None:
    assert _refusal(b'{"model":5,"messages":[nonsense').code is ErrorCode.INVALID_JSON
    assert _refusal(b"[nonsense").code is ErrorCode.INVALID_JSON


def test_nulls_count_as_absent() -> None:
    names = ("stream", "stream_options", "max_tokens", "n", "temperature", "top_p", "stop", "tools", "seed", "user")
    seen = peek(_body(**dict.fromkeys(names)))
    assert (seen.stream, seen.include_usage, seen.choices, seen.max_output_tokens) == (False, False, 1, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (_without("messages"), "messages"),
        (_body(model="m" * 257), "model"),
        (_body(messages=[]), "messages"),
        (_body(messages=None), "messages"),
        (_body(messages="hi"), "messages"),
        (_body(messages=[USER, "hi"]), "messages[1]"),
        (_body(messages=[{"role": "boss", "content": "x"}]), "messages[0].role"),
        (_body(messages=[USER, {"content": "x"}]), "messages[1].role"),
        (_body(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (_body(messages=[{"role": "user", "content": [{"type": "text", "text": 1}]}]), "messages[0].content[0].text"),
        (_body(messages=[{"role": "user", "content": [{"text": "x"}]}]), "messages[0].content[0].type"),
        (
            _body(messages=[USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 7}}]}]),
            "messages[1].content[0].image_url.url",
        ),
        (
            _body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
            "messages[0].content[0].image_url",
        ),
        (
            _body(messages=[{"role": "assistant", "tool_calls": [{"function": {}}]}]),
            "messages[0].tool_calls[0].function.name",
        ),
        (_body(max_tokens=0), "max_tokens"),
        (_body(max_tokens=-1), "max_tokens"),
        (_body(max_tokens="5"), "max_tokens"),
        (_body(max_tokens=1.5), "max_tokens"),
        (_body(max_tokens=10**12), "max_tokens"),
        (_body(max_completion_tokens=0), "max_completion_tokens"),
        (_body(temperature=2.1), "temperature"),
        (_body(temperature=-0.1), "temperature"),
        (_body(temperature="hot"), "temperature"),
        (_body(top_p=1.5), "top_p"),
        (_body(n=0), "n"),
        (_body(n=129), "n"),
        (_body(n=True), "n"),
        (_body(stream="yes"), "stream"),
        (_body(stream=1), "stream"),
        (_body(stream_options=[]), "stream_options"),
        (_body(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (_body(stop=[1]), "stop[0]"),
        (_body(stop={}), "stop"),
        (_body(tools={}), "tools"),
        (_body(tools=[{"type": "function"}, {}]), "tools[1].type"),
        (_body(tool_choice=1), "tool_choice"),
        (_body(seed="1"), "seed"),
        (_body(seed=1.5), "seed"),
        (_body(response_format="json"), "response_format"),
        (_body(logit_bias=[]), "logit_bias"),
        (_body(presence_penalty=3), "presence_penalty"),
        (_body(user=5), "user"),
    ],
)
@pytest.mark.parity(3, 28)
def test_a_wrong_field_is_400_and_named(body: bytes, param: str) -> None:
    error = _refusal(body)
    assert (error.code, error.status, error.param) == (ErrorCode.INVALID_REQUEST, 400, param)


IN_TEXT = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}'
IN_SKIPPED = b'{"model":"m","messages":[{"role":"user","content":"x"}],"zz":"%b"}'
IN_KEY = b'{"model":"m","messages":[{"role":"user","content":"x"}],"%b":1}'
VALUE = b'{"model":"m","messages":[{"role":"user","content":"x"}],"zz":%b}'


@pytest.mark.parametrize("template", [IN_TEXT, IN_SKIPPED, IN_KEY], ids=["text", "skipped", "key"])
@pytest.mark.parametrize(
    "text",
    [b"\\u0000", b"a\\\\\\u0000", b"\\ud800", b"\\uDFFF", b"\\udc00\\ud800", b"\xff", b"\xed\xa0\x80", b"\x00", b"\n"],
)
def test_nul_lone_surrogates_and_bad_utf8_are_refused_anywhere(template: bytes, text: bytes) -> None:
    assert _refusal(template % text).code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("template", [IN_TEXT, IN_SKIPPED, IN_KEY], ids=["text", "skipped", "key"])
@pytest.mark.parametrize("text", [b"\\\\u0000", b"\\\\ud800", b"\\ud83d\\ude00", b"\\u00e9", "é😀".encode(), b"\\n"])
def test_what_only_looks_like_it_passes(template: bytes, text: bytes) -> None:
    peek(template % text)


@pytest.mark.parametrize(
    "value", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"01", b"1.", b"+1", b".5", b"'x'", b"", b"[1,]"]
)
def test_what_json_does_not_know_is_refused_in_skipped_fields_too(value: bytes) -> None:
    assert _refusal(VALUE % value).code is ErrorCode.INVALID_JSON
    assert _refusal(_body().replace(b'"messages"', b'"temperature": %b, "messages"' % value)).status == 400


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}{}", b"hello", b"\xef\xbb\xbf{}", b'{"model":"m"', b"model=m&messages=x"]
)
def test_what_is_no_json_is_invalid_json(body: bytes) -> None:
    assert _refusal(body).code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"5"])
def test_a_body_is_an_object(body: bytes) -> None:
    assert (_refusal(body).code, _refusal(body).param) == (ErrorCode.INVALID_REQUEST, None)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_bounded(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> bytes:
        return VALUE % (opening * depth + b"1" + closing * depth)

    peek(nested(DEPTH_MAX - 1))
    for depth in (DEPTH_MAX, DEPTH_MAX + 1, 1000, 5000, 200_000):
        assert "nested" in _refusal(nested(depth)).message
    assert _refusal(VALUE % (opening * 100_000)).status == 400


def test_brackets_in_strings_are_not_nesting() -> None:
    peek(_body(messages=[{"role": "user", "content": "[{" * 500 + '"\\' * 50}]))


def test_wide_is_not_deep() -> None:
    peek(_body(tools=[{"type": "function", "function": {"name": str(i), "parameters": {"a": []}}} for i in range(200)]))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"application/json",
        b"Application/JSON; charset=UTF-8",
        b'application/json;charset="utf-8"',
        b"application/vnd.x+json",
    ],
)
def test_json_content_types_pass(value: bytes | None) -> None:
    check_content_type(value)


@pytest.mark.parametrize(
    "value", [b"text/plain", b"application/x-www-form-urlencoded", b"", b"application/json; charset=utf-16"]
)
def test_other_content_types_are_refused(value: bytes) -> None:
    with pytest.raises(HubError) as caught:
        check_content_type(value)
    assert (caught.value.status, caught.value.param) == (400, "content-type")


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=30,
)


@given(extra=st.dictionaries(_TEXT.map("x-{}".format), _JSON, max_size=5), content=_TEXT, ascii_only=st.booleans())
def test_every_valid_body_passes_whatever_unknown_fields_it_has(
    extra: dict[str, Any], content: str, *, ascii_only: bool
) -> None:
    body = json.dumps(
        {**GOOD, "messages": [{"role": "user", "content": content}], **extra}, ensure_ascii=ascii_only
    ).encode()
    assert peek(body).body_bytes == len(body)


@pytest.mark.parity(29)
@pytest.mark.parametrize("body", [_without("model"), _body(model=""), _body(model=None)])
def test_a_body_that_names_no_model_means_the_default_one(body: bytes) -> None:
    assert not peek(body).model


@settings(max_examples=500)
@given(st.data())
def test_a_damaged_body_passes_only_if_python_reads_it_too(data: st.DataObject) -> None:
    body = bytearray(
        _body(zz={"deep": ["é", 1.5, None, "\\ud83d\\ude00"]}, messages=[{"role": "user", "content": "a\\u0041"}])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"NaN", b"\\u", b'"', b"}"])
        )
    try:
        peek(bytes(body))
    except HubError as error:
        if error.status != 400:
            raise
        return
    read = json.loads(bytes(body))
    assert isinstance(read.get("model"), str | None)
    json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
    assert "\x00" not in _all_text(read)


@given(_JSON, st.integers(0, 6))
def test_depth_is_what_python_counts(value: Any, limit: int) -> None:
    assert depth_exceeds(json.dumps(value).encode(), limit) == (_depth(value) > limit)


def test_the_schema_names_everything_it_refers_to() -> None:
    schemas = json_schema("Chat")
    assert schemas["Chat"]["required"] == ["messages"]
    text = json.dumps(schemas)
    for reference in text.split("#/components/schemas/")[1:]:
        assert reference.partition('"')[0] in schemas


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _all_text(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(key + _all_text(item) for key, item in value.items())
    if isinstance(value, list):
        return "".join(map(_all_text, value))
    if isinstance(value, float):
        assert math.isfinite(value)
    return value if isinstance(value, str) else ""
