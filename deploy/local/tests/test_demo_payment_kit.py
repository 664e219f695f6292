"""`make run PAYMENT_KIT=demo`: the hub charges at a Payment Kit of its own."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx2
from rig.embedded import EmbeddedHub, seeded
from rig.waiting import until

ASK = {"model": "demo/echo", "messages": [{"role": "user", "content": "one two three"}]}


async def hub_command(folder: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from hub_local.cli import main; main()", *arguments,
        env={**os.environ, "HUB_DATA_DIR": str(folder)}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


def knows(pid: int, key: str) -> bool:
    return f"HUB_PAYMENT_KIT_APP_KEY={key}" in Path(f"/proc/{pid}/environ").read_text()


async def test_a_call_is_charged_at_the_demonstration_payment_kit(tmp_path: Path, template_folder: Path | None) -> None:
    folder = seeded(tmp_path / "data", template_folder)
    hub = EmbeddedHub(folder, {"HUB_PAYMENT_KIT": "demo"})
    try:
        await hub.start()
        await hub.ready()
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
            url = f"{hub.state()['urls'][0]}/api/v2/chat/completions"
            answer = await client.post(url, json=ASK, headers={"Authorization": f"Bearer {hub.key}"})
        call_id = answer.json()["usage"]["call_id"]
        journal = folder / "payment-kit.jsonl"

        async def reported() -> bool:
            lines = map(json.loads, journal.read_text("utf-8").splitlines())
            return f"mc_{call_id}" in {line["wanted"].get("identifier") for line in lines if "wanted" in line}

        await until(reported, what="the call is in Payment Kit's journal")

        async def sent() -> bool:
            return "sending: 0 pending, 0 parked" in await hub_command(folder, "payments", "status")

        await until(sent, what="and in ours")
        told = json.loads(await hub_command(folder, "status", "--json"))
        assert {row["name"]: row["ready"] for row in told["processes"]}["payment-kit"]
        key = json.loads((folder / "payment-kit-key.json").read_text())
        assert key not in hub.output
        for row in hub.state()["processes"]:
            assert knows(row["pid"], key) is (row["name"] in {"metering", "payment-kit"}), row["name"]
        hub.signal(signal.SIGTERM)
        assert await hub.ended() == 0
    finally:
        await hub.close()
