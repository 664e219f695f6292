import msgspec
import pytest

from bench.answers import DONE, JSON_PIECES, MARK, fault_of, json_answer, pieces_of_stream, question, stream_script
from bench.replies import Plan, plan_of


def stream_body(chunks: int = 10) -> bytes:
    """The events of a stream, without the framing of HTTP."""
    script = stream_script("bench-burst", chunks, include_usage=True)
    framed = b"".join(script.chunks + script.tail)
    body = b""
    while framed:
        size, _, rest = framed.partition(b"\r\n")
        body += rest[: int(size, 16)]
        framed = rest[int(size, 16) + 2 :]
    return body


def fault(body: bytes, *, status: int = 200, chunks: int = 10) -> str | None:
    return fault_of(status, body, stream=True, pieces=pieces_of_stream(chunks))


def test_a_stream_is_a_role_then_text_then_a_finish_then_usage_then_done() -> None:
    events = stream_body().split(b"\n\n")
    assert events[-2:] == [DONE, b""]
    values = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert len(values) == 11
    assert values[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [bool(v["choices"][0]["delta"].get("content")) for v in values[1:9]] == [True] * 8
    assert [v["choices"][0]["finish_reason"] for v in values[:10]] == [None] * 9 + ["stop"]
    assert values[10]["choices"] == []
    assert values[10]["usage"]["completion_tokens"] == 8


def test_usage_comes_only_when_asked_for() -> None:
    tail = stream_script("bench-burst", 10, include_usage=False).tail
    assert len(tail) == 1
    assert DONE in tail[0]


def test_a_whole_stream_has_no_fault_even_with_other_spacing_and_line_ends() -> None:
    body = stream_body()
    assert fault(body) is None
    assert fault(body.replace(b":", b": ").replace(b"\n\n", b"\r\n\r\n")) is None
    assert fault(body.replace(b"data: ", b"data:")) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda body: body.replace(DONE, b""), "no [DONE]"),
        (lambda body: body.replace(MARK, b"", 1), "pieces lost"),
        (lambda body: body.replace(MARK, MARK + MARK, 1), "pieces repeated"),
        (lambda body: body.replace(DONE, b'data: {"error":{"message":"x"}}'), "error event"),
        (lambda body: body.replace(DONE, b'data: {"error":{"message":"x"}}\n\n' + DONE), "error event"),
        (lambda body: body + b'data: {"choices":[]}\n\n', "no [DONE]"),
        (lambda _: b"", "no [DONE]"),
    ],
)
def test_a_stream_that_is_not_whole_has_a_fault(change, expected: str) -> None:  # type: ignore[no-untyped-def]
    assert fault(change(stream_body())) == expected


def test_a_status_other_than_200_is_a_fault_whatever_the_body() -> None:
    assert fault(stream_body(), status=402) == "HTTP 402"


def test_a_json_answer_of_about_700_bytes_is_whole() -> None:
    body = json_answer("bench-json")
    assert 600 <= len(body) <= 1_000
    assert msgspec.json.decode(body)["usage"]["total_tokens"] > 0
    assert fault_of(200, body, stream=False, pieces=JSON_PIECES) is None
    assert fault_of(200, b"{}", stream=False, pieces=JSON_PIECES) == "no choices"


def test_the_question_is_free_of_the_mark_so_an_echo_is_no_answer() -> None:
    assert MARK not in question("bench-json", stream=True)


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        ("bench-json", Plan(one_write=True, pace_per_s=0, chunks=100)),
        ("openai/bench-burst", Plan(one_write=True, pace_per_s=0, chunks=100)),
        ("a/b/bench-chunks-7", Plan(one_write=False, pace_per_s=0, chunks=7)),
        ("bench-paced-50", Plan(one_write=False, pace_per_s=50, chunks=100)),
        ("bench-paced-50-500", Plan(one_write=False, pace_per_s=50, chunks=500)),
        ("bench-paced-0", None),
        ("bench-chunks-2", None),
        ("bench-paced", None),
        ("gpt-4o", None),
    ],
)
def test_the_model_name_says_how_a_stream_is_written(model: str, plan: Plan | None) -> None:
    assert plan_of(model) == plan
