"""What an administrator does to a rate is what the next call is charged."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rig.provider import Reply
from rig.waiting import until

from contracts.rpc import catalog, identity, rate_changes
from journeys.system import CLAUDE, Caller, System
from runtime import rpc

ASK = [{"role": "user", "content": "Say hello."}]


async def credits_of(caller: Caller, model: str) -> str:
    """What one call costs now."""
    answer = await caller.post({"model": model, "messages": ASK, "max_tokens": 100})
    assert answer.status_code == 200, answer.text
    credits_: str = answer.json()["usage"]["credits"]
    return credits_


async def until_costs(caller: Caller, model: str, credits_: str) -> None:
    async def look() -> bool:
        return await credits_of(caller, model) == credits_

    await until(look, what=f"a call costs {credits_}")


async def until_status(caller: Caller, model: str, status: int) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer = await caller.post({"model": model, "messages": ASK})
        return answer.json() if answer.status_code == status else None

    body = await until(look, what=f"{model} is answered with {status}")
    assert body is not None
    return body


async def administrator(system: System, role: identity.Role = "admin") -> dict[str, str]:
    """Headers of somebody with this role."""
    made = await rpc.ask(
        system.bus, identity.SERVICE, identity.KEY_CREATE, identity.KeyCreate(role=role), identity.KeyCreated
    )
    return {"authorization": f"Bearer {made.key}"}


@pytest.mark.parity(53, 54)
async def test_tiers_and_an_hours_cache_are_charged_as_anthropic_reports_them(system: System) -> None:
    caller = await system.caller("100000")
    tier = {"above": 1000, "input": "0.02", "output": "0.04", "cache_read": "0", "cache_write_1h": "0.08"}
    rate = rate_changes.RatesSet.model_validate(
        {
            "pattern": f"anthropic/{CLAUDE}",
            "input": "0.01",
            "output": "0.02",
            "cache_read": "0",
            "cache_write_1h": "0.04",
            "tiers": [tier],
        }
    )
    await rpc.ask(system.bus, catalog.SERVICE, rate_changes.RATES_SET, rate, catalog.RateView)

    def used(five_minutes: int, hour: int) -> Reply:
        split = {"ephemeral_5m_input_tokens": five_minutes, "ephemeral_1h_input_tokens": hour}
        return Reply(
            usage={
                "input_tokens": 100,
                "output_tokens": 10,
                "cache_read_input_tokens": 50,
                "cache_creation_input_tokens": five_minutes + hour,
                "cache_creation": split,
            }
        )

    model = f"anthropic/{CLAUDE}"
    system.anthropic.always(used(200, 650))  # a prompt of 1,000: the first tier
    await until_costs(caller, model, "29.2000000000")  # 100 and 200 at 0.01, 50 for nothing, 650 at 0.04, 10 at 0.02
    system.anthropic.always(used(200, 651))  # one more: the second, for all of it
    assert await credits_of(caller, model) == "58.4800000000"  # 300 at 0.02, 651 at 0.08, 10 at 0.04


@pytest.mark.parity(109, 111)
async def test_a_deprecated_model_leaves_lists_and_service_until_it_is_taken_back(system: System) -> None:
    caller, headers = await system.caller(), await administrator(system)
    await system.set_rate("openai/fading", "0.001", "0.001")
    await until_status(caller, "openai/fading", 200)
    version = (await system.http.get("/api/admin/rates?pattern=fading", headers=headers)).json()["rates"][0]["version"]
    change = {"pattern": "openai/fading", "deprecated": True, "expected_version": version}
    answer = await system.http.put("/api/admin/rates/deprecation", json=change, headers=headers)
    assert answer.status_code == 200, answer.text
    refusal = await until_status(caller, "openai/fading", 404)
    assert (refusal["error"]["code"], "deprecated" in refusal["error"]["message"]) == ("model_not_found", True)
    assert (await caller.get("/v1/models/openai/fading")).status_code == 404
    again = {**change, "deprecated": False, "expected_version": answer.json()["version"]}
    assert (await system.http.put("/api/admin/rates/deprecation", json=again, headers=headers)).status_code == 200
    await until_status(caller, "openai/fading", 200)


@pytest.mark.parity(108, 114)
async def test_a_rate_that_begins_later_is_charged_from_then_on_and_the_history_says_so(system: System) -> None:
    caller, headers = await system.caller(), await administrator(system, "owner")
    system.openai.always(Reply(usage={"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}))
    rate = {"pattern": "openai/rising", "input": "0.01", "output": "0", "expected_version": 0}
    first = (await system.http.put("/api/admin/rates", json=rate, headers=headers)).json()
    await until_status(caller, "openai/rising", 200)
    assert await credits_of(caller, "openai/rising") == "0.1000000000"
    begins = datetime.now(UTC) + timedelta(seconds=1)
    later = {**rate, "input": "0.02", "expected_version": first["version"], "effective_at": begins.isoformat()}
    assert (await system.http.put("/api/admin/rates", json=later, headers=headers)).status_code == 200
    assert (await system.http.put("/api/admin/rates", json=later, headers=headers)).status_code == 409
    await until_costs(caller, "openai/rising", "0.2000000000")
    assert datetime.now(UTC) >= begins
    answer = await system.http.get("/api/admin/rates/history?pattern=openai/rising", headers=headers)
    newest, oldest = answer.json()["versions"]
    assert (newest["previous"]["input"], newest["input"], oldest["previous"]) == ("0.01", "0.02", None)
    assert newest["changed_by"] == oldest["changed_by"] != ""
    member = await administrator(system, "member")
    assert (await system.http.get("/api/admin/rates/history", headers=member)).status_code == 403
