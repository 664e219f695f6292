"""A service as a process: exit codes, secrets masked, signals obeyed."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
from contextlib import asynccontextmanager
import asyncio
from runtime.process import main
from runtime.settings import DatabaseSettings

@asynccontextmanager
async def app(settings, process):
    print("opening", flush=True)
    if settings.ops_host == "never":
        await asyncio.sleep(3600)
    print("open", flush=True)
    yield
    print("closed", flush=True)

main("test", DatabaseSettings, app)
"""
GOOD = {"HUB_NATS_URL": "nats://u:secret-n@h", "HUB_DATABASE_URL": "postgresql://u:secret-d@h/d"}


def environment(**changes: str) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), **GOOD, **changes}


def run(*arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in environment(**changes).items() if value}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=env, check=False, capture_output=True, text=True
    )


def test_check_prints_settings_without_secrets() -> None:
    ended = run("--check")
    assert ended.returncode == 0
    assert '"ops_port": 0' in ended.stdout
    assert "secret" not in ended.stdout + ended.stderr


def test_missing_and_wrong_settings_are_named_with_code_78() -> None:
    ended = run(HUB_NATS_URL="", HUB_OPS_PORT="70000")
    assert ended.returncode == 78
    assert "HUB_NATS_URL: Field required" in ended.stderr
    assert "HUB_OPS_PORT" in ended.stderr
    assert "secret" not in ended.stderr


async def started(until_line: bytes, **changes: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM,
        env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := await process.stdout.readline()) != until_line:
        assert line, "the process ended early"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_closes_the_service_and_ends_it_cleanly(number: signal.Signals) -> None:
    process = await started(b"open\n")
    process.send_signal(number)
    out, _ = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, out) == (0, b"closed\n")


async def test_signal_while_the_service_still_waits_for_something_ends_it_at_once() -> None:
    process = await started(b"opening\n", HUB_OPS_HOST="never")
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert b"stopped before it had started" in err
