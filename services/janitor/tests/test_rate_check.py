"""The price check as a duty, against a provider-router that speaks the real wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from contracts import permissions, subjects
from contracts.ids import new_process_id
from contracts.rpc import catalog, rate_changes
from contracts.rpc.envelope import Reply
from janitor.app import janitor
from janitor.settings import Settings


def checked(found: str, action: str) -> rate_changes.CheckedRate:
    return rate_changes.CheckedRate.model_validate(
        {"pattern": f"llm/{found}", "found": found, "drift_percent": "4.00", "margin_percent": "-3", "action": action}
    )


@asynccontextmanager
async def asked_of_router(
    nats: Any, report: rate_changes.CheckReport
) -> AsyncIterator["asyncio.Queue[rate_changes.RatesCheck]"]:
    """The questions that a provider-router with this report gets."""
    bus = await nats.connect(permissions.ROUTER)
    asked: asyncio.Queue[rate_changes.RatesCheck] = asyncio.Queue()

    def answer(_subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        asked.put_nowait(rate_changes.RatesCheck.model_validate_json(payload))
        bus.send(reply.decode(), Reply[rate_changes.CheckReport](ok=report).model_dump_json(exclude_none=True).encode())

    await bus.listen(subjects.rpc(catalog.SERVICE, rate_changes.RATES_CHECK), answer, queue=catalog.SERVICE)
    await bus.flush()
    yield asked
    await bus.close()


@pytest.mark.parity(112, 113)
@pytest.mark.parametrize("apply", [False, True])
async def test_rates_are_checked_at_once_and_again_and_losses_are_told(nats: Any, apply: bool) -> None:
    report = rate_changes.CheckReport(
        check_id="1",
        source="genai-prices 1",
        counts={"below_cost": 2, "drift": 1},
        rates=(checked("below_cost", "proposed"), checked("below_cost", "applied"), checked("drift", "applied")),
    )
    settings = Settings.model_validate(
        {"nats_url": nats.url(permissions.JANITOR), "rates_check_period_s": 0.1, "rates_auto_update": apply}
    )
    with capture_logs() as logs:
        async with (
            asked_of_router(nats, report) as asked,
            janitor(settings, new_process_id("janitor")),
            asyncio.timeout(20),
        ):
            questions = [await asked.get() for _ in range(2)]
    assert {(question.apply, question.changed_by) for question in questions} == {(apply, "janitor")}
    told = {entry["event"]: entry for entry in logs if entry["event"].startswith("rate")}
    assert (told["rates below cost"]["rates"], told["rates below cost"]["first"]) == (1, ["llm/below_cost"])
    assert told["rate changes wait for approval"]["changes"] == 1
