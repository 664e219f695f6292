"""The official OpenAI Node SDK, unmodified; `node/journey.mjs` is its side."""

import asyncio
import json
import os
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rig.provider import Reply, refusal

from journeys import wire
from journeys.system import CLAUDE, MOUNTS, Caller, System

FOLDER = Path(__file__).parent / "node"
HELLO = "Hello from the provider."
WITHIN_S = 30


@pytest.fixture(scope="session")
def node() -> str:
    """The interpreter, with the SDK beside the script."""
    found = shutil.which("node")
    if found is None:
        reason = "the Node SDK is not tested: node is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.fail(f"the Node SDK is missing; run `npm ci` in {FOLDER.relative_to(FOLDER.parents[2])}")
    return found


class Sdk:
    """Runs scenarios of the script against one mount."""

    def __init__(self, node: str, base_url: str, caller: Caller) -> None:
        self._node = node
        self._env = {"PATH": os.environ["PATH"], "HUB_BASE_URL": base_url, "HUB_KEY": caller.key}

    async def run(self, scenario: str, **options: object) -> dict[str, Any]:
        """What a scenario printed."""
        process = await asyncio.create_subprocess_exec(
            self._node, "journey.mjs", scenario, json.dumps(options),
            cwd=FOLDER, env=self._env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, trouble = await asyncio.wait_for(process.communicate(), WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, trouble.decode()
        printed: dict[str, Any] = json.loads(out)
        return printed


@pytest.fixture(params=MOUNTS)
def sdk(request: pytest.FixtureRequest, node: str, system: System, caller: Caller) -> Sdk:
    """On each mount."""
    return Sdk(node, system.hub.url + str(request.param), caller)


@pytest.fixture
def v1(node: str, system: System, caller: Caller) -> Sdk:
    """On one."""
    return Sdk(node, system.hub.url + MOUNTS[0], caller)


def text(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@pytest.mark.parity(2)
async def test_node_reads_an_answer_with_credits_call_and_headers(sdk: Sdk, caller: Caller) -> None:
    printed = await sdk.run("chat")
    answer, headers = printed["answer"], printed["headers"]
    assert answer["choices"][0]["message"]["content"] == HELLO
    view = await caller.call(answer["usage"]["call_id"])
    assert answer["usage"]["credits"] == view["credits"] == "0.0170000000"
    assert headers["x-call-id"] == view["call_id"]
    assert headers["x-request-id"] == view["request_id"] == printed["requestId"]
    assert headers["x-trace-id"] == view["trace_id"]


@pytest.mark.parity(7, 8)
async def test_node_reads_a_stream_and_its_usage_chunk(sdk: Sdk, caller: Caller) -> None:
    plain = (await sdk.run("stream"))["chunks"]
    assert text(plain) == HELLO
    assert plain[-1]["choices"][0]["finish_reason"] == "stop"
    *before, last = (await sdk.run("stream", body={"stream_options": {"include_usage": True}}))["chunks"]
    assert text(before) == HELLO
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 12
    assert (await caller.call(last["usage"]["call_id"]))["credits"] == last["usage"]["credits"]


@pytest.mark.parity(4, 7)
async def test_node_accumulates_streamed_tool_calls(system: System, v1: Sdk) -> None:
    def part(**more: object) -> bytes:
        return wire.chunk({"tool_calls": [{"index": 0, **more}]})

    system.openai.always(
        Reply(
            chunks=(
                wire.chunk({"role": "assistant", "content": None}),
                part(id="call_1", type="function", function={"name": "weather", "arguments": '{"ci'}),
                part(function={"arguments": 'ty":"Oslo"}'}),
                wire.chunk({}, "tool_calls"),
                wire.usage_chunk(),
                wire.DONE,
            )
        )
    )
    answer = (await v1.run("accumulated"))["answer"]
    (called,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(called["function"]["arguments"]) == {"city": "Oslo"}
    assert json.loads(system.openai.journal[0].body)["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parity(5)
async def test_node_parses_an_answer_bound_to_a_schema(system: System, v1: Sdk) -> None:
    system.openai.always(Reply(body=wire.answer({"content": '{"name":"Oslo"}'})))
    answer = (await v1.run("parsed"))["answer"]
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"name": "Oslo"}
    assert json.loads(system.openai.journal[0].body)["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parity(6)
async def test_node_sends_images_choices_and_unknown_fields(system: System, v1: Sdk) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    vendor = {"depth": 1.5, "none": None}
    body = {"messages": [{"role": "user", "content": parts}], "n": 2, "x_vendor": vendor}
    answer = (await v1.run("chat", body=body))["answer"]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [HELLO, HELLO]
    sent = json.loads(system.openai.journal[0].body)
    assert (sent["messages"][0]["content"], sent["n"], sent["x_vendor"]) == (parts, 2, vendor)


async def test_node_lists_and_looks_up_models(sdk: Sdk) -> None:
    printed = await sdk.run("models")
    assert {"demo/echo", "first0/pooled-0"} <= set(printed["ids"])
    assert (printed["one"]["id"], printed["one"]["owned_by"]) == ("openai/gpt-4o", "openai")


@pytest.mark.parity(27)
@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequestError"),
        (404, "NotFoundError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (503, "InternalServerError"),
    ],
)
async def test_a_providers_refusal_is_nodes_exception(system: System, v1: Sdk, status: int, name: str) -> None:
    system.openai.always(refusal(status, "No.", code="their_code", kind="their_type"))
    error = (await v1.run("chat"))["error"]
    assert (error["name"], error["code"], error["type"]) == (name, "their_code", "their_type")


@pytest.mark.parity(28, 35)
async def test_our_own_refusals_are_nodes_exceptions(system: System, node: str, v1: Sdk) -> None:
    wrong = (await v1.run("chat", body={"max_tokens": 0}))["error"]
    assert (wrong["name"], wrong["param"], wrong["code"]) == ("BadRequestError", "max_tokens", "invalid_request")
    missing = (await v1.run("chat", model="nobody/nothing"))["error"]
    assert (missing["name"], missing["param"]) == ("NotFoundError", "model")
    stranger = (await v1.run("chat", key="sk-wrong"))["error"]
    assert (stranger["name"], stranger["code"]) == ("AuthenticationError", "invalid_api_key")
    poor = Sdk(node, system.hub.url + MOUNTS[0], await system.caller("0"))
    broke = (await poor.run("chat"))["error"]
    assert (broke["status"], broke["type"]) == (402, "NOT_ENOUGH")
    assert system.openai.journal == []


async def test_node_tries_again_only_what_may_pass(system: System, v1: Sdk, caller: Caller) -> None:
    system.openai.replies(refusal(500))
    assert (await v1.run("chat", retries=2))["answer"]["choices"][0]["message"]["content"] == HELLO
    assert len(system.openai.journal) == 2
    system.openai.always(refusal(403))
    assert (await v1.run("chat", retries=2))["error"]["code"] == "upstream_authentication"
    assert len(system.openai.journal) == 3
    assert (await caller.released()).spent == Decimal("0.017")


@pytest.mark.parity(10)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(cut_at=3),
        Reply(cut_at=3, cut="close"),
        Reply(finish_reason=None),
        Reply(finish_reason=None, done=False),
        Reply(error_at=3),
    ],
    ids=["reset", "closed", "no finish reason", "no finish reason, no [DONE]", "an error object"],
)
async def test_a_stream_that_breaks_throws_in_node(system: System, v1: Sdk, caller: Caller, reply: Reply) -> None:
    system.openai.always(reply)
    printed = await v1.run("stream")
    assert "chunks" not in printed
    assert "Error" in printed["error"]["name"]
    assert (await caller.released()).spent == 0


async def test_node_leaves_early_and_pays_for_what_was_delivered(system: System, v1: Sdk, caller: Caller) -> None:
    reply = Reply(hold_at=3)
    system.openai.always(reply)
    assert await v1.run("left") == {}
    received = system.openai.journal[0]
    view = await caller.closed(received.call_id)
    assert (view["state"], view["outcome"]) == ("success", "cancelled")
    assert received.gone_at is not None
    assert Decimal(view["credits"]) > 0


@pytest.mark.parity(2, 7)
async def test_node_talks_to_anthropic(v1: Sdk) -> None:
    whole = (await v1.run("chat", model=CLAUDE))["answer"]
    chunks = (await v1.run("stream", model=CLAUDE, body={"stream_options": {"include_usage": True}}))["chunks"]
    assert whole["choices"][0]["message"]["content"] == text(chunks) == HELLO
    assert chunks[-1]["usage"]["credits"] == whole["usage"]["credits"] == "0.0170000000"
