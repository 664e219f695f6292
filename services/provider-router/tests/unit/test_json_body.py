import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provider_router import json_body

STRANGE = (
    b'{ "x" : 1e400 ,"big":123456789012345678901234567890, "one":1.0,"model":"a/b", '
    b'"nul":null,"\\u0061":[1, 2],"z":{"k" :1}}'
)
names = st.text(max_size=5).filter(lambda name: name not in {"model", "stream_options"})
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


def test_all_but_the_models_name_keeps_its_bytes() -> None:
    body = STRANGE.replace(rb'"\u0061"', rb'"\u00fc"')
    assert json_body.with_model(body, "b") == body.replace(b'"a/b"', b'"b"')


def test_usage_is_asked_for_at_the_end_of_a_body() -> None:
    body = b'{ "model" : "x", "a":1.0 }\n'
    asked = json_body.with_model(body, "y", include_usage=True)
    assert asked == b'{ "model" : "y", "a":1.0 ,"stream_options":{"include_usage":true}}'


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":{"model":"n"},"mod\u0065l":"x"}',
        rb'{"a":{"model":"n"},"\u006Dodel":"x"}',
        b'{"a":"model","model":"x"}',
        b'{"a":{"model":"n"},"model":"x"}',
        rb'{"a":"\"model\":\"n\"","model":"x"}',
        rb'{"model":"\"x"}',
        rb'{"model":"x","n":1,"\u006e":2}',
        b'{"max_tokens":100000,"model":"x","max_tokens":1}',
        b'{"stream":false,"model":"x","stream":true}',
    ],
)
def test_the_models_name_is_the_member_and_nothing_that_looks_like_it(body: bytes) -> None:
    expected = json.loads(body) | {"model": "y"}
    assert json.loads(json_body.with_model(body, "y")) == expected
    assert json.loads(json_body.with_model(body, "y", include_usage=True)) == expected | {
        "stream_options": {"include_usage": True}
    }


def test_a_body_without_a_model_gets_one() -> None:
    assert json_body.with_model(b'{"a":{"model":"n"}}', "y") == b'{"a":{"model":"n"},"model":"y"}'


def test_what_admission_reads_never_stands_twice() -> None:
    assert json_body.with_model(b'{"n":9,"model":"x","n":1}', "y") == b'{"n":1,"model":"y"}'


def test_a_body_taken_apart_keeps_members_and_their_places() -> None:
    body = STRANGE[:-1] + b',"\\u006fdd":{"model":1}}'
    assert json_body.with_model(body, "b") == (
        b'{"x":1e400,"big":123456789012345678901234567890,"one":1.0,"model":"b","nul":null,"a":[1, 2],"z":{"k" :1},'
        b'"odd":{"model":1}}'
    )


def test_the_last_of_duplicate_members_counts() -> None:
    assert json_body.with_model(b'{"a":1,"model":"x","a":2,"model":"y"}', "m") == b'{"a":2,"model":"m"}'


@pytest.mark.parametrize(
    ("given_", "options"),
    [
        (b"{}", b'{"include_usage":true}'),
        (b'{"stream_options":null}', b'{"include_usage":true}'),
        (b'{"stream_options":{"include_usage":false,"b":1.0}}', b'{"include_usage":true,"b":1.0}'),
    ],
)
def test_usage_is_asked_for_beside_other_stream_options(given_: bytes, options: bytes) -> None:
    assert bytes(json_body.members(json_body.with_model(given_, "m", include_usage=True))["stream_options"]) == options


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'{"a":NaN}', b'{"a":1}x', b"{1:2}", b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(json_body.JsonBodyError):
        json_body.with_model(body, "m")


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(json_body.JsonBodyError):
        json_body.members(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@given(st.dictionaries(names, values, max_size=5))
@settings(max_examples=50, deadline=None)
def test_only_the_model_changes(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "x", **fields}).encode()
    assert json.loads(json_body.with_model(body, "y")) == {"model": "y", **fields}


@given(st.dictionaries(names, values, max_size=5))
@settings(max_examples=50, deadline=None)
def test_an_object_is_put_last_and_its_brace_is_found(fields: dict[str, Any]) -> None:
    whole, at = json_body.with_object(json.dumps(fields).encode(), "usage", b'{"a":1}')
    assert json.loads(whole[:at] + b',"credits":"1"' + whole[at:]) == {**fields, "usage": {"a": 1, "credits": "1"}}


@given(st.text())
def test_text_that_looks_like_usage_does_not_mislead_the_splice(text: str) -> None:
    body = json.dumps({"content": text + '"usage":{"a": 1}', "usage": {"a": 1}, "after": 1}).encode()
    at = json_body.closing_brace(body, bytes(json_body.members(body)["usage"]))
    assert at is not None
    assert json.loads(body[:at] + b',"b":2' + body[at:])["usage"] == {"a": 1, "b": 2}


def test_a_value_that_stands_twice_has_no_position() -> None:
    body = b'{"x":{"a":1},"usage":{"a":1}}'
    assert json_body.closing_brace(body, b'{"a":1}') is None


def test_an_empty_object_is_joined_as_one() -> None:
    assert re.fullmatch(rb"\{\}", json_body.joined({}))
