"""`hub chat`: a first call from the terminal."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from contracts.rpc import identity
from contracts.rpc.envelope import Empty
from hub_local.commands.session import UsageError, ask, first_owner, run, running

_TIMEOUT = httpx2.Timeout(10.0, read=120.0)


def chat(*message: str, model: str = "demo/echo", key: str | None = None) -> None:
    """Ask a model and print its answer as it comes.

    Args:
        message: what to say.
        model: `provider/model`, or a bare name.
        key: an access key; HUB_KEY when absent, else one of the first owner's that lives only for this call.
    """
    run(_chat(" ".join(message) or "Hello!", model, key or os.environ.get("HUB_KEY")))


async def _chat(text: str, model: str, key: str | None) -> None:
    url = f"{running().urls[0]}/api/v2/chat/completions"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with _usable_key(key) as usable, httpx2.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {usable}"}
        async with client.stream("POST", url, json=body, headers=headers) as response:
            if response.status_code != httpx2.codes.OK:
                raise UsageError(_problem(await response.aread()))
            usage = await _print_answer(response.aiter_lines())
            call_id = response.headers.get("x-call-id", "")
    sys.stderr.write(
        f"\n{usage.get('total_tokens', '?')} tokens, {usage.get('credits', '?')} credits, call {call_id}\n"
    )


async def _print_answer(lines: AsyncIterator[str]) -> dict[str, object]:
    """Print the text of a stream.

    Returns:
        Its usage.

    Raises:
        UsageError: the stream carries an error, or ends without `[DONE]`.
    """
    usage: dict[str, object] = {}
    async for line in lines:
        data = line.removeprefix("data: ")
        if data == line:
            continue
        if data == "[DONE]":
            return usage
        chunk = json.loads(data)
        if "error" in chunk:
            raise UsageError(chunk["error"]["message"])
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            sys.stdout.write(choice["delta"].get("content") or "")
        sys.stdout.flush()
    raise UsageError("the answer broke off")


@asynccontextmanager
async def _usable_key(given: str | None) -> AsyncIterator[str]:
    if given:
        yield given
        return
    wanted = identity.KeyCreate(user=await first_owner(), role="member", name="hub chat")
    made = await ask(identity.SERVICE, identity.KEY_CREATE, wanted, identity.KeyCreated)
    try:
        yield made.key
    finally:
        await ask(identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id=made.key_id), Empty)


def _problem(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "the hub's answer was no error that this command can read"
