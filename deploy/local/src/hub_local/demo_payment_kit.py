"""`PAYMENT_KIT=demo`: the Payment Kit of the tests beside the hub, with an application key of its own."""

import functools
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hub_local.folder import DataFolder, read_json, write_private
from hub_local.keeper import StartError
from hub_local.programs import Program, http_status

NAME: Final = "payment-kit"
READY_PATH: Final = "/control/health"
_TESTS: Final = Path(__file__).resolve().parents[4] / "tests"
_INHERITED: Final = ("PATH", "HOME", "LANG", "TMPDIR")


def settings_for_metering(folder: DataFolder, port: int) -> dict[str, str]:
    """Address and key; the key is made at the first start and kept."""
    file = folder.root / "payment-kit-key.json"
    key = read_json(file)
    if key is None:
        key = secrets.token_hex(32)
        write_private(file, key)
    return {"HUB_PAYMENT_KIT_URL": f"http://127.0.0.1:{port}", "HUB_PAYMENT_KIT_APP_KEY": key}


def program(folder: DataFolder, port: int, hub_url: str, environment: Mapping[str, str], key: str) -> Program:
    """How to run it. Its journal lies in the data folder: stopping loses nothing.

    Raises:
        hub_local.keeper.StartError: this installation has no `tests` folder.
    """
    if not (_TESTS / "payment_kit").is_dir():
        raise StartError("HUB_PAYMENT_KIT=demo needs the source tree: the demonstration Payment Kit lies in its tests")
    command = ("-m", "payment_kit", "--port", str(port), "--journal", str(folder.root / "payment-kit.jsonl"))
    return Program(
        name=NAME,
        command=(sys.executable, *command, "--webhook", f"{hub_url}/api/payment/callback"),
        env={name: environment[name] for name in _INHERITED if name in environment}
        | {"PYTHONPATH": str(_TESTS), "PYTHONUNBUFFERED": "1", "HUB_PAYMENT_KIT_APP_KEY": key},
        ready=functools.partial(_is_ready, port),
        stop_within_s=5.0,
    )


async def _is_ready(port: int) -> bool:
    return await http_status(port, READY_PATH) == 200  # noqa: PLR2004
