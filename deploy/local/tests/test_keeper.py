import asyncio
import io
import os
import sys
from pathlib import Path

import pytest
from rig.waiting import until

from hub_local.console import Console
from hub_local.keeper import Keeper, StartError
from hub_local.programs import Program
from hub_local.services import armed, inherited, process_environment


def program(script: str, *, answers: bool = True) -> Program:
    async def ready() -> bool:
        return answers

    return Program(name="thing", command=(sys.executable, "-c", script), env={"SET": "1"}, ready=ready)


async def kept(keeper: Keeper, restarts: int) -> None:
    async def look() -> bool:
        return keeper.restarts >= restarts

    task = asyncio.create_task(keeper.run())
    await until(look, within_s=20)
    await keeper.stop()
    await task


async def test_pauses_between_restarts_double() -> None:
    out = io.StringIO()
    await kept(Keeper(program("raise SystemExit(3)"), Console(out), lambda: None), restarts=3)
    pauses = [line.rsplit("in ", 1)[1] for line in out.getvalue().splitlines() if "exit code 3" in line]
    assert pauses[:3] == ["0.2 s", "0.4 s", "0.8 s"]


async def test_what_is_added_for_the_first_start_is_gone_at_the_second() -> None:
    out = io.StringIO()
    keeper = Keeper(
        program("import os; print('armed', os.environ.get('HUB_FAIL'))"), Console(out), lambda: None, {"HUB_FAIL": "x"}
    )
    await kept(keeper, restarts=2)
    lines = [line.split("| ")[1] for line in out.getvalue().splitlines() if "armed" in line]
    assert lines[:2] == ["armed x", "armed None"]


async def test_a_long_line_does_not_stop_the_relay() -> None:
    out = io.StringIO()
    script = "print('x' * 3_000_000); print('after', flush=True)\nimport time; time.sleep(60)"
    keeper = Keeper(program(script), Console(out), lambda: None)

    async def look() -> bool:
        return "after" in out.getvalue()

    task = asyncio.create_task(keeper.run())
    await until(look, within_s=20)
    await keeper.stop()
    await task


async def test_wrong_settings_are_said_with_the_programs_own_words() -> None:
    keeper = Keeper(
        program("print('HUB_X: no'); raise SystemExit(78)", answers=False), Console(io.StringIO()), lambda: None
    )
    task = asyncio.create_task(keeper.run())
    with pytest.raises(StartError, match="HUB_X: no"):
        await keeper.ready(within_s=20)
    await keeper.stop()
    await task


def test_a_service_sees_only_what_is_its_own() -> None:
    everything = {
        "PATH": "/bin", "OTEL_TRACES_EXPORTER": "console", "HUB_LEASE_S": "5", "HUB_KEY": "operator's",
        "OPENAI_API_KEY": "a", "HUB_PROVIDERS__X__API_KEY": "b", "HUB_KEY_PEPPER": "c", "HUB_BOOTSTRAP_KEY": "d",
        "HUB_FAIL": "metering.after_commit:kill", "AWS_SECRET_ACCESS_KEY": "e", "HUB_DATABASE_URL": "f",
    }  # fmt: skip
    shared = {"PATH", "OTEL_TRACES_EXPORTER", "HUB_LEASE_S"}
    assert inherited("metering", everything).keys() == shared
    assert inherited("janitor", everything).keys() == shared
    assert inherited("gateway", everything).keys() == shared | {"HUB_KEY_PEPPER", "HUB_BOOTSTRAP_KEY"}
    assert inherited("provider-router", everything).keys() == shared | {"OPENAI_API_KEY", "HUB_PROVIDERS__X__API_KEY"}


def test_failpoints_go_to_the_service_that_they_name() -> None:
    env = {"HUB_FAIL": "metering.after_commit:kill:after=3, gateway.before_reserve:stop"}
    assert armed("metering", env) == {"HUB_FAIL": "metering.after_commit:kill:after=3"}
    assert armed("gateway", env) == {"HUB_FAIL": "gateway.before_reserve:stop"}
    assert armed("janitor", env) == {}


def test_the_settings_file_fills_what_the_environment_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.env"
    file.write_text("# ours\nHUB_PORT=9090\nHUB_WELCOME_CREDITS='7.5'\nOPENAI_API_KEY=sk-file\n")
    monkeypatch.setenv("HUB_ENV_FILE", str(file))
    monkeypatch.setenv("HUB_PORT", "9191")
    environment = process_environment()
    assert environment["HUB_PORT"] == "9191"
    assert environment["HUB_WELCOME_CREDITS"] == "7.5"
    assert environment["OPENAI_API_KEY"] == "sk-file"
    assert "OPENAI_API_KEY" not in os.environ, "only the services' environments get it"
