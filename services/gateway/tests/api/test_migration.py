"""`/api/migration/…`: the original's names, for owners and administrators only."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id
from contracts.rpc import grant_conversion as g
from contracts.rpc import metering
from gateway.api import migration
from runtime.rpc import answer, broker

GRANTS, STATUS = "/api/migration/grants", "/api/migration/status"
RUNNING = g.GrantsConversion(
    conversion_id="c1", price="0.0000025", dry_run=False, changes_unit=False, state="running", started_at=""
)


@dataclass
class Converter:
    """Metering's part, played: it is asked, and asked again until it has ended."""

    ends: g.GrantsConversion = RUNNING
    looks: int = 2
    """How often it still runs."""
    refusal: HubError | None = None
    asked: list[g.GrantsConvert] = field(default_factory=list)

    async def convert(self, asked: g.GrantsConvert) -> g.GrantsConversion:
        self.asked.append(asked)
        if self.refusal is not None:
            raise self.refusal
        return RUNNING

    async def look(self, asked: g.GrantsConversionGet) -> g.GrantsConversion:
        assert asked.conversion_id == "c1"
        self.looks -= 1
        return self.ends if self.looks < 0 else RUNNING

    async def unit(self, _asked: g.GrantsUnitGet) -> g.GrantsUnit:
        meter = g.UnitMeter(id="mtr_1", name="AIGNE Hub AI Meter", status="active", currency_id="pc_1", decimal=10)
        return g.GrantsUnit(
            payment_running=True, in_new_unit=True, old_meter=meter, total_grants=7, unmigrated_grants=4,
            credit_price="1.0000000000",
        )  # fmt: skip


@pytest.fixture
async def converter(
    nats_url: Callable[[str], str], stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> Converter:
    monkeypatch.setattr(migration, "_LOOK_S", 0.01)
    played, user = Converter(), permissions.METERING
    process = new_process_id(user)
    on = broker(nats_url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))
    service = metering.SERVICE
    answer(on, service, g.GRANTS_CONVERT, g.GrantsConvert, g.GrantsConversion, played.convert)
    answer(on, service, g.GRANTS_CONVERSION, g.GrantsConversionGet, g.GrantsConversion, played.look)
    answer(on, service, g.GRANTS_UNIT, g.GrantsUnitGet, g.GrantsUnit, played.unit)
    await on.start()
    stack.push_async_callback(on.stop)
    return played


async def post(surface: Any, body: Any, role: str = "admin") -> Any:
    key = await surface.key(role)
    return await surface.http.post(GRANTS, json=body, headers={"authorization": f"Bearer {key.key}"})


@pytest.mark.parity(69)
async def test_an_administrator_gets_the_summary_once_the_conversion_has_ended(
    surface: Any, converter: Converter
) -> None:
    stuck = g.GrantProblem(grant_id="crdg_9", customer_id="cus_1", problem="usage_pending")
    more: dict[str, Any] = {"state": "finished", "total": 5, "migrated": 2, "skipped": 2, "before": "8", "after": "2"}
    converter.ends = RUNNING.model_copy(update={**more, "errors": 1, "problems": (stuck,)})
    told = await post(surface, {"baseCreditPrice": "0.0000025"})
    assert told.status_code == 200
    assert told.json() == {
        "success": False,
        "summary": {"total": 5, "processed": 5, "migrated": 2, "skipped": 2, "errors": 1},
        "before": "8", "after": "2", "error": "",
        "problems": [{"grantId": "crdg_9", "customerId": "cus_1", "problem": "usage_pending"}],
    }  # fmt: skip
    (asked,) = converter.asked
    assert (asked.price, asked.dry_run, asked.in_new_unit) == ("0.0000025", False, True)

    converter.ends = RUNNING.model_copy(update={**more, "skipped": 3})
    whole = await post(surface, {"baseCreditPrice": 0.0000025, "dryRun": True})
    assert whole.json()["success"]
    assert (converter.asked[1].price, converter.asked[1].dry_run) == ("0.0000025", True), "a number is read as written"


@pytest.mark.parity(69)
async def test_the_status_has_the_originals_names(surface: Any, converter: Converter) -> None:
    key = await surface.key("owner")
    told = await surface.get(STATUS, key)
    assert told.json() == {
        "paymentRunning": True, "migrationEnabled": True,
        "oldMeter": {
            "id": "mtr_1", "name": "AIGNE Hub AI Meter", "status": "active", "currencyId": "pc_1", "decimal": 10,
        },
        "newMeter": None, "totalGrantCount": 7, "unmigratedGrantCount": 4, "baseCreditPrice": "1.0000000000",
    }  # fmt: skip


async def test_members_and_guests_convert_nothing_and_see_nothing(surface: Any, converter: Converter) -> None:
    for role in ("member", "guest"):
        assert (await post(surface, {"baseCreditPrice": "1"}, role)).status_code == 403
        assert (await surface.get(STATUS, await surface.key(role))).status_code == 403
    assert (await surface.http.post(GRANTS, json={})).status_code == 401
    assert converter.asked == []


async def test_a_price_that_is_none_is_refused(surface: Any, converter: Converter) -> None:
    prices: list[Any] = ["0", -1, "NaN", "Infinity", "1e6", None, "1e-10", []]
    bodies: list[Any] = [{"baseCreditPrice": price} for price in prices]
    for body in (*bodies, {}, [], {"baseCreditPrice": "1", "price": "2"}):
        refused = await post(surface, body)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request"), body
    assert converter.asked == []


async def test_refusals_and_failures_are_told_and_a_long_conversion_is_joined_later(
    surface: Any, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter.ends = RUNNING.model_copy(update={"state": "failed", "error": "calls of 1 accounts still run"})
    failed = await post(surface, {"baseCreditPrice": "1"})
    assert (failed.status_code, "calls of 1 accounts" in failed.json()["error"]) == (409, True)
    converter.looks = 1_000_000
    monkeypatch.setattr(migration, "_LONG_S", 0.05)
    later = await post(surface, {"baseCreditPrice": "1"})
    assert (later.status_code, later.json()["code"]) == (503, "service_unavailable")
    converter.refusal = HubError(ErrorCode.CONFLICT, "2 reports are parked.")
    refused = await post(surface, {"baseCreditPrice": "1"})
    assert (refused.status_code, refused.json()["error"]) == (409, "2 reports are parked.")
