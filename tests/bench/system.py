"""Our own system on scratch data, with everything on, in front of the mock upstream."""

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import nats
from pydantic import BaseModel

from bench.processes import BenchError, Upstream
from bench.replies import MODELS
from contracts import subjects
from contracts.permissions import OPERATOR
from contracts.rpc import catalog, identity, rate_changes
from contracts.rpc.envelope import Reply
from hub_local.first_key import new_key
from hub_local.state import HubState, read

PROVIDER: Final = "bench"
OUR_SERVICES: Final = ("gateway", "provider-router", "metering", "janitor")
SERVERS: Final = ("nats", "postgres")
SUPERVISOR: Final = "supervisor"
CREDITS: Final = "1000000000"
"""Of each account: more than any run spends."""

_READY: Final = re.compile(r"AIGNE Hub is ready at (http://\S+)")
_READY_WITHIN_S: Final = 180.0
_STOP_WITHIN_S: Final = 60.0
_RPC_WITHIN_S: Final = 60.0
_LOG_LINES: Final = 20
_INSTANCE: Final = re.compile(r"-\d+$")

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class System:
    """What is measured.

    Attributes:
        url: base URL, as the OpenAI SDKs take it.
        keys: access keys, one per account.
        processes: process ids by name.
    """

    url: str
    keys: tuple[str, ...]
    model_prefix: str
    processes: dict[str, tuple[int, ...]]


@contextmanager
def running_hub(
    folder: Path, upstream: Upstream, accounts: int, settings: Mapping[str, str] | None = None
) -> Iterator[System]:
    """Start `hub up` in a scratch folder, with prices and accounts; stop it at the end.

    Args:
        folder: for its data and log.
        upstream: its only provider.
        accounts: each with a key and plenty of credit.
        settings: of the hub, besides the benchmark's own.

    Raises:
        BenchError: it did not start or did not stop.
        contracts.errors.HubError: it refused prices or accounts.
    """
    bootstrap_key = new_key()
    log = folder / "hub.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("hub")), "up"],
            env=_environment(folder, upstream, bootstrap_key) | dict(settings or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = _wait_until_ready(process, log)
        state = read(_data_dir(folder))
        asyncio.run(set_rates(state))
        keys = asyncio.run(create_accounts(state, accounts)) if accounts > 1 else (bootstrap_key,)
        yield System(url=f"{url}/v1", keys=keys, model_prefix=f"{PROVIDER}/", processes=_processes(state, process.pid))
    finally:
        _stop(process, log)


async def set_rates(state: HubState) -> None:
    """Give the mock upstream's models a price above zero, so that every call is charged."""
    rates = rate_changes.RatesSet(
        pattern=f"{PROVIDER}/*", input="0.0000025000", output="0.0000100000", changed_by="benchmark"
    )
    await _ask(state, catalog.SERVICE, rate_changes.RATES_SET, rates, catalog.RateView)


async def create_accounts(state: HubState, count: int) -> tuple[str, ...]:
    """Make accounts with a key and plenty of credit each; returns the keys."""
    request = identity.KeysCreate(count=count, welcome_credits=CREDITS)
    created = await _ask(state, identity.SERVICE, identity.KEYS_CREATE, request, identity.KeysCreated)
    if len(created.keys) != count:
        raise BenchError(f"asked for {count} accounts, got {len(created.keys)}")
    return tuple(key.key for key in created.keys)


async def _ask(state: HubState, service: str, method: str, request: BaseModel, answer: type[Answer]) -> Answer:
    client = await nats.connect(state.nats_url, inbox_prefix=f"_INBOX.{OPERATOR}.bench".encode())
    try:
        reply = await client.request(
            subjects.rpc(service, method), request.model_dump_json().encode(), timeout=_RPC_WITHIN_S
        )
    finally:
        await client.close()
    return Reply[answer].model_validate_json(reply.data).unwrap()  # type: ignore[valid-type]


def _data_dir(folder: Path) -> Path:
    return folder / "data"


def _environment(folder: Path, upstream: Upstream, bootstrap_key: str) -> dict[str, str]:
    """The caller's environment without its own hub and providers, with ours; all else by default."""
    foreign = re.compile(r"HUB_|OPENAI_|ANTHROPIC_")
    inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    provider = f"HUB_PROVIDERS__{PROVIDER.upper()}__"
    return inherited | {
        "HUB_PORT": "0",
        "HUB_DATA_DIR": str(_data_dir(folder)),
        "HUB_BOOTSTRAP_KEY": bootstrap_key,
        "HUB_WELCOME_CREDITS": CREDITS,
        f"{provider}BASE_URL": f"{upstream.url}/v1",
        f"{provider}API_KEY": secrets.token_hex(16),
        f"{provider}MODELS": ",".join(MODELS),
    }


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        match = _READY.search(log.read_text(errors="replace"))
        if match is not None:
            return match[1]
        if process.poll() is not None:
            raise BenchError(f"`hub up` ended with code {process.returncode}:\n{_last_lines(log)}")
        time.sleep(0.05)
    raise BenchError(f"`hub up` was not ready within {_READY_WITHIN_S:.0f} s:\n{_last_lines(log)}")


def _processes(state: HubState, supervisor_pid: int) -> dict[str, tuple[int, ...]]:
    """Process ids by name; several of one service count as one name.

    Raises:
        BenchError: a service or server has no process.
    """
    found: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for process in state.processes:
        if process.pid is not None:
            found[_INSTANCE.sub("", process.name)] += (process.pid,)
    missing = [name for name in OUR_SERVICES + SERVERS if name not in found]
    if missing:
        raise BenchError(f"no process of {', '.join(missing)} among {', '.join(found) or 'none'}")
    return {name: found[name] for name in OUR_SERVICES + SERVERS} | {SUPERVISOR: (supervisor_pid,)}


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise BenchError(f"`hub up` did not stop within {_STOP_WITHIN_S:.0f} s:\n{_last_lines(log)}") from None


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
