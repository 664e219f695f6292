"""`hub up` as users meet it: real processes, ended in every way."""

import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx2
import pytest_asyncio
from rig.embedded import EmbeddedHub, seeded
from rig.waiting import until

from hub_local.folder import runs

ASK = {"model": "demo/echo", "messages": [{"role": "user", "content": "one two three"}]}
SERVICES = ("gateway", "provider-router", "metering", "janitor")


@pytest_asyncio.fixture(loop_scope="session")
async def folder(tmp_path: Path, template_folder: Path | None) -> Path:
    return seeded(tmp_path / "data", template_folder)


@pytest_asyncio.fixture(loop_scope="session")
async def hub(folder: Path) -> AsyncIterator[EmbeddedHub]:
    hub = EmbeddedHub(folder, {"OPENAI_API_KEY": "sk-only-for-the-router"})
    yield hub
    await hub.close()


async def ask(hub: EmbeddedHub, key: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
        return await client.post(
            f"{hub.state()['urls'][0]}/api/v2/chat/completions", json=ASK, headers={"Authorization": f"Bearer {key}"}
        )


async def answered(hub: EmbeddedHub, key: str, after: str) -> None:
    """A call succeeds, soon: right after a restart the parts may still be finding each other."""
    seen = ""

    async def look() -> bool:
        nonlocal seen
        try:
            answer = await ask(hub, key)
        except httpx2.TransportError as error:
            seen = type(error).__name__
            return False
        seen = answer.text
        return answer.status_code == 200

    try:
        await until(look, within_s=20, every_s=0.1)
    except AssertionError:
        raise AssertionError(f"no call is answered after {after}: {seen}\n{hub.output[-6000:]}") from None


async def charged(hub: EmbeddedHub) -> int:
    connection = await asyncpg.connect(hub.state()["database_url"])
    try:
        count: int = await connection.fetchval("select count(*) from metering.model_call where state = 'success'")
    finally:
        await connection.close()
    return count


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


async def test_first_call_by_what_the_ready_line_shows_and_everything_kept_over_a_restart(hub: EmbeddedHub) -> None:
    await hub.start()
    await hub.ready()
    key = hub.key
    assert f'-H "Authorization: Bearer {key}"' in hub.output
    assert (await ask(hub, key)).json()["choices"][0]["message"]["content"] == "one two three"
    assert stat.S_IMODE((hub.data_dir / "hub.json").stat().st_mode) == 0o600
    stored = b"".join(path.read_bytes() for path in hub.data_dir.glob("*.json"))
    assert key.encode() not in stored
    pids = [row["pid"] for row in hub.state()["processes"]]

    hub.signal(signal.SIGTERM)
    assert await hub.ended() == 0
    assert not any(runs(pid) for pid in pids)
    order = [line.split()[0] for line in hub.output.splitlines() if line.endswith("stopping")]
    assert order == list(SERVICES)
    assert not (hub.data_dir / "hub.json").exists()

    again = EmbeddedHub(hub.data_dir)
    await again.start()
    await again.ready()
    assert "shown only this once" not in again.output
    assert (await ask(again, key)).status_code == 200
    assert await charged(again) == 2
    await again.close()


async def test_each_part_comes_back_after_kill_nine(hub: EmbeddedHub) -> None:
    await hub.start()
    await hub.ready()
    key = hub.key
    for name in (*SERVICES, "nats", "postgres"):
        os.kill(hub.process(name)["pid"], signal.SIGKILL)
        await hub.comes_back(name, restarts=1)
        assert f"{name} ended (SIGKILL)" in hub.output
        await answered(hub, key, f"kill -9 of {name}")
    assert [row["restarts"] for row in hub.state()["processes"]] == [1] * 6


async def test_kill_nine_of_the_supervisor_takes_everything_along_and_loses_nothing(hub: EmbeddedHub) -> None:
    await hub.start()
    await hub.ready()
    key = hub.key
    assert (await ask(hub, key)).status_code == 200
    pids = [row["pid"] for row in hub.state()["processes"]]
    hub.signal(signal.SIGKILL)
    await hub.ended()
    again = EmbeddedHub(hub.data_dir)
    await again.start()
    await again.ready()
    assert not any(runs(pid) for pid in pids)
    assert (await ask(again, key)).status_code == 200
    assert await charged(again) == 2
    await again.close()


async def test_a_second_start_on_the_folder_names_the_first(hub: EmbeddedHub) -> None:
    await hub.start()
    await hub.says("NATS and PostgreSQL are up")
    second = EmbeddedHub(hub.data_dir)
    await second.start()
    assert await second.ended() == 75
    assert f"another hub runs on {hub.data_dir} (pid {hub.pid})" in second.output
    assert (hub.data_dir / "hub.json").exists(), "the first one's state is untouched"


async def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        hub = EmbeddedHub(tmp_path / "data", {"HUB_PORT": str(port)})
        await hub.start()
        assert await hub.ended() == 75
    assert f"port {port} on 127.0.0.1 is taken" in hub.output
    assert not (tmp_path / "data" / "postgres" / "data").exists()


async def test_wrong_settings_end_the_start(hub: EmbeddedHub, folder: Path) -> None:
    wrong = EmbeddedHub(folder, {"HUB_GATEWAYS": "none"})
    await wrong.start()
    assert await wrong.ended() == 78
    assert "HUB_GATEWAYS" in wrong.output
    wrong = EmbeddedHub(folder, {"HUB_UNPRICED": "perhaps"})
    await wrong.start()
    assert await wrong.ended() == 78
    assert "gateway refuses its settings" in wrong.output
    assert "HUB_UNPRICED" in wrong.output


async def test_a_second_signal_kills_at_once(hub: EmbeddedHub) -> None:
    await hub.start()
    await hub.ready()
    pids = [row["pid"] for row in hub.state()["processes"]]
    os.kill(hub.process("gateway")["pid"], signal.SIGSTOP)  # it will never drain
    hub.signal(signal.SIGINT)
    await hub.says("stopping: open calls may end first")
    hub.signal(signal.SIGINT)
    assert await hub.ended(within_s=10) == 130
    assert not any(runs(pid) for pid in pids)


async def test_two_of_each_with_secrets_apart_and_a_failpoint_that_fires_once(folder: Path) -> None:
    env = {
        "HUB_GATEWAYS": "2", "HUB_ROUTERS": "2", "HUB_METERINGS": "2", "HUB_JANITORS": "2",
        "HUB_BOOTSTRAP_KEY": "blocklet-z5pw9M9wm3KFsP4JPwaCH1Ww6VLByZAwxkmybbY6F4NRY",
        "OPENAI_API_KEY": "sk-only-for-the-router", "HUB_PROVIDERS__OTHER__API_KEY": "sk-other",
        "HUB_PROVIDERS__OTHER__BASE_URL": "https://other.invalid/v1",
    }  # fmt: skip
    hub = EmbeddedHub(folder, env)
    await hub.start()
    try:
        await hub.ready()
        state = hub.state()
        assert len(state["urls"]) == 2
        assert env["HUB_BOOTSTRAP_KEY"] not in hub.output, "a key that somebody set is not repeated"
        passwords = set()
        for row in state["processes"][2:]:
            seen = environment(row["pid"])
            text = "\n".join(f"{name}={value}" for name, value in seen.items())
            service = row["name"].removesuffix("-2")
            assert ("sk-only-for-the-router" in text) is (service == "provider-router"), row["name"]
            assert ("sk-other" in text) is (service == "provider-router"), row["name"]
            assert ("HUB_KEY_PEPPER" in seen) is (service == "gateway"), row["name"]
            assert ("HUB_BOOTSTRAP_KEY" in seen) is (service == "gateway"), row["name"]
            assert ("HUB_DATABASE_URL" in seen) is (service != "janitor"), row["name"]
            passwords.add(seen["HUB_NATS_URL"])
        assert len(passwords) == 4, "one NATS user per service"
        for url in state["urls"]:
            async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
                headers = {"Authorization": f"Bearer {env['HUB_BOOTSTRAP_KEY']}"}
                answer = await client.post(f"{url}/api/v2/chat/completions", json=ASK, headers=headers)
                assert answer.status_code == 200, f"{answer.text}\n{hub.output}"
    finally:
        await hub.close()
