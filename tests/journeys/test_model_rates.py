"""Rates by provider and model over HTTP, as the original's administrators make, change, find and remove them."""

from typing import Any

import httpx2
import pytest
from rig.provider import Reply

from journeys.system import System
from journeys.test_rates import administrator, credits_of, until_costs, until_status

RATES = "/api/ai-providers/openai/model-rates"
MANY = "/api/ai-providers/model-rates"
BATCH = f"{MANY}/batch"
BULK = "/api/ai-providers/bulk-rate-update"


def rate(model: str, price: str = "0.01", **more: Any) -> dict[str, Any]:
    return {"model": model, "type": "chatCompletion", "inputRate": price, "outputRate": "0", **more}


async def sent(system: System, headers: dict[str, str], method: str, path: str, body: Any = None) -> httpx2.Response:
    return await system.http.request(method, path, json=body, headers=headers)


def problem(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parity(108)
async def test_a_rate_is_made_changed_found_and_removed_and_calls_cost_what_it_says(system: System) -> None:
    caller, admin = await system.caller(), await administrator(system)
    system.openai.always(Reply(usage={"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}))
    made = await sent(system, admin, "POST", RATES, rate("whole-life", caching={"readRate": "0"}, description="Öl"))
    assert made.status_code == 200, made.text
    first = made.json()
    assert (first["inputRate"], first["modelDisplay"], first["description"]) == ("0.01", "Whole Life", "Öl")
    assert problem(await sent(system, admin, "POST", RATES, rate("whole-life"))) == (409, "conflict")
    await until_status(caller, "openai/whole-life", 200)
    assert await credits_of(caller, "openai/whole-life") == "0.1000000000"

    path = f"{RATES}/{first['id']}"
    change = await sent(system, admin, "PUT", path, {"inputRate": "0.02"})
    second = change.json()
    assert (second["inputRate"], second["caching"]["readRate"], second["description"]) == ("0.02", "0", "Öl")
    await until_costs(caller, "openai/whole-life", "0.2000000000")
    for method in ("PUT", "DELETE"):
        assert problem(await sent(system, admin, method, path, {"inputRate": "7"})) == (409, "conflict"), method
    wrong_model = await sent(system, admin, "PUT", f"{RATES}/{second['id']}", {"model": "other"})
    assert problem(wrong_model) == (400, "invalid_request")

    listed = (await sent(system, admin, "GET", f"{MANY}?q=model:like.whole-l&providerId=openai,demo&pageSize=1")).json()
    assert (listed["count"], listed["paging"], [each["id"] for each in listed["list"]]) == (
        1, {"page": 1, "pageSize": 1}, [second["id"]],
    )  # fmt: skip
    gone = await sent(system, admin, "DELETE", f"{RATES}/{second['id']}")
    assert (gone.status_code, gone.json()["now"]) == (200, None)
    refusal = await until_status(caller, "openai/whole-life", 400)
    assert refusal["error"]["code"] == "model_unpriced"
    for name in (second["id"], first["id"], "no-id"):
        assert problem(await sent(system, admin, "DELETE", f"{RATES}/{name}")) == (404, "not_found")
    past = await sent(system, admin, "GET", "/api/admin/rates/history?pattern=openai/whole-life")
    assert [(each["removed"], each["input"]) for each in past.json()["versions"]] == [
        (True, "0.02"), (False, "0.02"), (False, "0.01"),
    ]  # fmt: skip


@pytest.mark.parity(108)
async def test_prices_are_also_taken_as_the_numbers_that_the_originals_pages_send(system: System) -> None:
    admin = await administrator(system)
    numbers = {"inputRate": 0.1, "outputRate": 2.5e-07, "unitCosts": {"input": 1e-10, "output": 3}}
    made = (await sent(system, admin, "POST", RATES, {**rate("numbers"), **numbers})).json()
    assert (made["inputRate"], made["outputRate"]) == ("0.1", "0.00000025")
    assert made["unitCosts"] == {"input": "0.0000000001", "output": "3"}
    margin = {"profitMargin": 2.5, "creditPrice": 1, "providers": ["openai"], "dryRun": True}
    assert (await sent(system, admin, "POST", BULK, margin)).status_code == 200
    assert (await sent(system, admin, "DELETE", f"{RATES}/{made['id']}")).status_code == 200
    for wrong in (-0.1, 1e18, True, [1], {}):
        refused = await sent(system, admin, "POST", RATES, {**rate("wrong"), "inputRate": wrong})
        assert problem(refused) == (400, "invalid_request"), wrong


@pytest.mark.parity(108)
async def test_a_batch_with_a_wrong_row_changes_nothing_and_names_each(system: System) -> None:
    admin = await administrator(system)
    everywhere = {**rate("everywhere"), "providers": ["openai", "anthropic"]}
    answer = await sent(system, admin, "POST", MANY, everywhere)
    assert (answer.status_code, answer.json()["summary"]) == (200, {"total": 2})
    assert problem(await sent(system, admin, "POST", MANY, everywhere)) == (409, "conflict")
    old = answer.json()["data"][0]
    rows: list[Any] = [
        {**rate("one"), "providerId": "openai"},
        {**rate("one", "NaN"), "providerId": "openai"},
        {**rate("one", "-1"), "providerId": "openai"},
        {**rate("one", "1e18"), "providerId": "openai"},
        {**rate("past", effectiveAt="2020-01-01T00:00:00Z"), "providerId": "openai"},
        {**rate("lost"), "providerId": "nobody"},
        {**rate("everywhere"), "providerId": "openai"},
        {**rate("yes", outputRate=True), "providerId": "openai"},
    ]
    refused = await sent(system, admin, "POST", BATCH, {"rates": rows})
    assert problem(refused) == (400, "invalid_request")
    assert [(each["index"], each["code"], each["param"]) for each in refused.json()["errors"]] == [
        (1, "invalid_request", "inputRate"),
        (2, "invalid_request", "inputRate"),
        (3, "invalid_request", "inputRate"),
        (4, "invalid_request", "effectiveAt"),
        (5, "not_found", "providerId"),
        (6, "conflict", "expectedVersion"),
        (7, "invalid_request", "outputRate"),
    ]
    good = {"rates": [rows[0], {**rate("everywhere", "2"), "providerId": "openai", "expectedVersion": old["version"]}]}
    assert (await sent(system, admin, "POST", BATCH, {**good, "dryRun": True})).json()["data"] == []
    nothing = await sent(system, admin, "GET", f"{MANY}?providerId=openai&q=model:one,past,float")
    assert nothing.json()["count"] == 0
    done = await sent(system, admin, "POST", BATCH, good)
    assert [(each["model"], each["inputRate"]) for each in done.json()["data"]] == [
        ("one", "0.01"),
        ("everywhere", "2"),
    ]
    again = await sent(system, admin, "POST", BATCH, good)
    assert problem(again) == (409, "conflict")
    assert [each["index"] for each in again.json()["errors"]] == [0, 1]


@pytest.mark.parity(110)
async def test_margins_and_named_costs_are_tried_dry_and_then_done(system: System) -> None:
    admin = await administrator(system)
    costs = {"provider": "openai", "model": "costly", "unitCosts": {"input": "0.1", "output": "0.2"}}
    sync = {"updates": [costs], "profitMargin": "10", "creditPrice": "1"}
    tried = (await sent(system, admin, "POST", BULK, {**sync, "dryRun": True})).json()
    done = (await sent(system, admin, "POST", BULK, sync)).json()
    assert (tried["dryRun"], done["dryRun"], tried["created"]) == (True, False, done["created"])
    assert done["created"][0]["current"] == {"inputRate": "0.1100000000", "outputRate": "0.2200000000"}
    assert (await sent(system, admin, "POST", BULK, sync)).json()["summary"]["unchanged"] == 1
    margin = (await sent(system, admin, "POST", BULK, {"profitMargin": "20", "creditPrice": "1"})).json()
    assert [each["current"]["inputRate"] for each in margin["updated"]] == ["0.1200000000"]
    for wrong, param in (
        ({}, "profitMargin"),
        ({"profitMargin": "-1"}, "profitMargin"),
        ({"profitMargin": "1", "creditPrice": "0"}, "creditPrice"),
        ({"updates": [{**costs, "unitCosts": {"input": "1", "output": "-1"}}]}, "updates.0.unitCosts.output"),
        ({"updates": [{"model": "m", "unitCosts": {"input": "1", "output": "1"}}]}, "provider"),
    ):  # fmt: skip
        answer = await sent(system, admin, "POST", BULK, wrong)
        assert problem(answer) == (400, "invalid_request"), wrong
        assert param in answer.json()["error"]


async def test_what_is_no_question_about_rates_is_a_400(system: System) -> None:
    admin = await administrator(system)
    for query in ("q=price:1", "q=model", "q=model:", "providerId=a,", "providerId=A", "o=up", "page=0", "pageSize=101",
                  "type=chat", "model=%00", "q=" + "%20".join(["type:a"] * 28)):  # fmt: skip
        answer = await sent(system, admin, "GET", f"{MANY}?{query}")
        expected = (200, None) if query.endswith("type:a") else (400, "invalid_request")
        assert (answer.status_code, answer.json().get("code")) == expected, query
    for body in ({}, {"rates": []}, {"rates": [1]}, {"rates": [{}] * 201}):
        assert problem(await sent(system, admin, "POST", BATCH, body)) == (400, "invalid_request"), body
    for body in (rate("x" * 101), rate("a\x00"), rate("t", tiers=[{"above": 1, "input": "1", "output": "1"}] * 9),
                 rate("m", modelMetadata={"maxTokens": 2**62}), rate("k", type="chat")):  # fmt: skip
        assert problem(await sent(system, admin, "POST", RATES, body)) == (400, "invalid_request"), body
    assert problem(await sent(system, admin, "POST", "/api/ai-providers/nobody/model-rates", rate("m"))) == (
        404, "not_found",
    )  # fmt: skip
    member = await administrator(system, "member")
    for method, path in (("GET", MANY), ("POST", BATCH), ("GET", RATES), ("DELETE", f"{RATES}/x")):
        assert problem(await sent(system, member, method, path)) == (403, "forbidden")
