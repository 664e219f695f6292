"""The README's first call, as written there, on a hub that was started as written there."""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from rig.embedded import EmbeddedHub, seeded

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8080"
WITHIN_S = 30


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hub(tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None) -> AsyncIterator[EmbeddedHub]:
    """`hub up` on a folder of its own; the README's address stands for the one that it shows."""
    hub = EmbeddedHub(seeded(tmp_path_factory.mktemp("readme") / "data", template_folder))
    await hub.start()
    try:
        await hub.ready()
        yield hub
    finally:
        await hub.close()


def block(language: str, containing: str) -> str:
    """The one code block of the README with this text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return str(found)


async def run(hub: EmbeddedHub, *command: str) -> str:
    """What a command prints, with the key and the folder as a reader has them."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command, env={**keep, "HUB_KEY": hub.key, "HUB_DATA_DIR": str(hub.data_dir)}, cwd=hub.data_dir.parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, trouble = await asyncio.wait_for(process.communicate(), WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, trouble.decode()
    return out.decode()


def here(hub: EmbeddedHub, text: str) -> str:
    """The README's text for this hub."""
    assert ADDRESS in text
    return text.replace(ADDRESS, hub.state()["urls"][0])


def curl(hub: EmbeddedHub) -> str:
    """The first call; `HUB_KEY` is exported already."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    written = block("sh", "curl ")
    return here(hub, written[written.index("curl ") :]).replace("curl ", "curl --fail-with-body -sS --noproxy '*' ", 1)


async def test_the_first_call_is_answered_and_booked(hub: EmbeddedHub) -> None:
    answer = json.loads(await run(hub, "sh", "-c", curl(hub)))
    assert answer["choices"][0]["message"]["content"] == "Hello!"
    call_id = answer["usage"]["call_id"]
    shown = await run(hub, sys.executable, "-m", "hub_local.cli", "calls", "show", call_id)
    assert call_id in shown
    assert "success" in shown
    assert call_id in await run(hub, sys.executable, "-m", "hub_local.cli", "calls")
    told = await run(
        hub, sys.executable, "-m", "hub_local.cli", "usage", "tail", "--from-start", "--count", "1", "--json"
    )
    assert json.loads(told)["data"]["credits"] == answer["usage"]["credits"]
    balance = await run(hub, sys.executable, "-m", "hub_local.cli", "credits", "balance")
    assert re.search(r"\b99\.9", balance), balance


async def test_the_hub_command_keeps_the_ledger(hub: EmbeddedHub) -> None:
    async def credits(*arguments: str) -> str:  # noqa: A001 - the command's name
        return await run(hub, sys.executable, "-m", "hub_local.cli", "credits", *arguments)

    account = "did:shop"
    given = await credits("grant", account, "10", "--reason", "paid", "--expires", "2099-01-01", "--priority", "9")
    assert given.endswith(f"{account} has 10.0000000000 credits available\n")
    grant_id = given.split()[1]
    assert "has 7.5000000000 credits" in await credits("adjust", account, "-2.5", "--reason", "a mistake")
    assert "withdrawn -1.0000000000" in await credits("refund", grant_id, "--grant", "--amount", "1")
    assert "expired -6.5000000000" in await credits("expire", grant_id)
    grants, transactions, statement, listed = await asyncio.gather(
        credits("grants", account),
        credits("transactions", account),
        credits("statement", account),
        credits("list", "--contains", "shop", "--below", "1"),
    )
    assert f"{grant_id}\texpired\t10.0000000000\t0.0000000000\ttop_up\t9" in grants
    kinds = [line.split("\t")[1] for line in transactions.splitlines()]
    assert kinds == ["kind", "expired", "withdrawn", "adjusted", "granted"]
    assert re.search(r"^difference +0\.0000000000$", statement, re.MULTILINE)
    assert account in listed


@pytest.mark.parity(7)
async def test_the_first_call_streams(hub: EmbeddedHub) -> None:
    assert 'With `"stream": true` the answer comes as server-sent events' in README
    streaming = curl(hub).replace('{"model"', '{"stream": true, "model"')
    lines = [line for line in (await run(hub, "sh", "-c", streaming)).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "Hello!"


async def test_the_sdks_first_call_is_answered(hub: EmbeddedHub) -> None:
    program = here(hub, block("python", "from openai import OpenAI")).replace("blocklet-z…", hub.key)
    assert "content='Hello!'" in await run(hub, sys.executable, "-c", program)


async def test_the_hub_command_chats(hub: EmbeddedHub) -> None:
    assert "`hub chat Hello`" in README
    assert "Hello" in await run(hub, sys.executable, "-m", "hub_local.cli", "chat", "Hello")
