"""Signed calls: the recorded ones are made and judged as the original does, except where we are stricter."""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.component_call import AppKey, Verdict, judge, query_object, signed_headers

FIXTURE = json.loads((Path(__file__).parents[3] / "tests/payment_kit/fixtures/component-call.json").read_text("utf-8"))
KEY = AppKey.read(FIXTURE["app"]["secretKeyHex"])
NOW = FIXTURE["clock"]
STRICTER = {
    "issued in the future: iat is not compared with the clock": Verdict.WRONG,
    "proxied under a prefix that the caller signed; the proxy names it in x-path-prefix": Verdict.WRONG,
}
"""A call from the future is refused; a path prefix counts from a configured proxy only, and there is none."""
JUDGED = [case for case in FIXTURE["sameApplication"]["judged"] if not case["what"].startswith("session")]
SIGNED = [
    case
    for case in FIXTURE["sameApplication"]["signing"]
    if "params" not in case["request"]  # there the package joins the query itself
]


@pytest.mark.parametrize("case", SIGNED, ids=itemgetter("what"))
def test_a_call_is_signed_as_recorded(case: dict[str, Any]) -> None:
    request = case["request"]
    body = json.loads(request["dataJson"]) if "dataJson" in request else None
    headers = signed_headers(KEY, "z1", request["method"], request["url"], body, case["iat"])
    assert headers["x-component-sig"] == case["signature"]


@pytest.mark.parametrize("case", JUDGED, ids=itemgetter("what"))
def test_a_recorded_call_is_judged_like_the_original(case: dict[str, Any]) -> None:
    asked = case["request"]
    body = asked.get("bodyText", "").encode()
    verdict = judge(KEY.public, asked["method"], asked["path"], asked["headers"], body, case["receivedAt"])
    theirs = {200: Verdict.GOOD, 400: Verdict.UNSIGNED, 401: Verdict.WRONG}[case["result"]["status"]]
    assert verdict is STRICTER.get(case["what"], theirs)


def test_a_call_that_is_valid_for_longer_is_refused() -> None:
    headers = signed_headers(KEY, "z1", "POST", "/a", {}, NOW)
    longer = headers | {"x-component-sig-exp": str(NOW + 301)}
    assert judge(KEY.public, "POST", "/a", headers, b"{}", NOW) is Verdict.GOOD
    assert judge(KEY.public, "POST", "/a", longer, b"{}", NOW) is Verdict.WRONG


@settings(max_examples=50)
@given(body=st.binary(max_size=40), signature=st.text(max_size=140), iat=st.text(max_size=12), url=st.text(max_size=30))
def test_nothing_that_comes_in_breaks_the_judge(body: bytes, signature: str, iat: str, url: str) -> None:
    headers = {"x-component-sig": signature, "x-component-sig-iat": iat, "x-component-sig-exp": str(NOW + 300)}
    assert judge(KEY.public, "POST", url, headers, body, NOW) in {Verdict.WRONG, Verdict.UNSIGNED}


def test_a_query_is_read_as_javascript_reads_it() -> None:
    assert query_object("b=2&a=1&a=3&e=&plus=a+b&deep[k]=v&deep[n][m]=1&list[0]=x&list[1]=y&more[]=1&more[]=2") == {
        "b": "2", "a": ["1", "3"], "e": "", "plus": "a b", "deep": {"k": "v", "n": {"m": "1"}},
        "list": ["x", "y"], "more": ["1", "2"],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "0x", "0xzz", "0x" + "00" * 31, "z1111", "0x" + "11" * 64])
def test_what_is_no_key_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="application key") as refused:
        AppKey.read(text)
    assert not text or text not in str(refused.value)
