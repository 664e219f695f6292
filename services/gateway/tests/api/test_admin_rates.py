"""`/api/admin/rates…`: for owners and administrators only, in their name, and never blindly."""

from typing import Any

import pytest

from gateway.api import routes
from gateway.api.bodies import BODY_BYTES_MAX

RATE: dict[str, Any] = {"pattern": "openai/gpt-4o", "input": "0.1", "output": "0.2", "expected_version": 0}
PATHS = [(route.methods[0], route.path) for route in routes.ROUTES if route.path.startswith("/api/admin/rates")]


async def _send(surface: Any, method: str, path: str, key: Any, content: bytes = b"") -> Any:
    return await surface.http.request(method, path, content=content, headers={"authorization": f"Bearer {key.key}"})


@pytest.mark.parity(35)
async def test_members_and_guests_neither_see_nor_change_rates(surface: Any) -> None:
    keys = [await surface.key(role) for role in ("member", "guest")]
    assert len(PATHS) == 10
    for method, path in PATHS:
        for key in keys:
            answer = await _send(surface, method, path, key)
            assert (answer.status_code, answer.json()) == (403, {"code": "forbidden", "error": "no permission"}), path


@pytest.mark.parity(108)
async def test_an_administrator_changes_a_rate_in_their_own_name(surface: Any) -> None:
    key = await surface.key("admin")
    answer = await surface.http.put(
        "/api/admin/rates", json={**RATE, "changed_by": "somebody else"}, headers={"authorization": f"Bearer {key.key}"}
    )
    assert answer.status_code == 200
    (asked,) = surface.books.rates
    assert (asked.changed_by, asked.pattern) == (key.user, "openai/gpt-4o")
    listed = (await surface.get("/api/admin/rates?pattern=gpt", key)).json()["rates"]
    assert [rate["pattern"] for rate in listed] == ["openai/gpt-4o"]


async def test_whoever_comes_second_gets_409(surface: Any) -> None:
    key = await surface.key("owner")
    headers = {"authorization": f"Bearer {key.key}"}
    answers = [await surface.http.put("/api/admin/rates", json=RATE, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[1].json()["code"] == "conflict"


WRONG: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"input": "NaN"}, 400, "input"),
    ({"input": "-1"}, 400, "input"),
    ({"output": 0.1}, 400, "output"),
    ({"output": None}, 400, "output"),
    ({"request": "1e18"}, 400, "request"),
    ({"expected_version": None}, 400, "expected_version"),
    ({"pattern": "x" * 201}, 400, "pattern"),
    ({"tiers": [{"above": -1, "input": "1", "output": "1"}]}, 400, "tiers.0.above"),
    ({"changed_by": "x" * BODY_BYTES_MAX}, 413, "limit"),
)


async def test_a_body_that_is_no_rate_is_refused_with_the_field(surface: Any) -> None:
    key = await surface.key("admin")
    for changes, status, word in WRONG:
        answer = await surface.http.put(
            "/api/admin/rates", json={**RATE, **changes}, headers={"authorization": f"Bearer {key.key}"}
        )
        assert answer.status_code == status, changes
        assert word in answer.json()["error"]
    assert surface.books.rates == []


async def test_what_is_no_json_is_said_to_be_none(surface: Any) -> None:
    answer = await _send(surface, "PUT", "/api/admin/rates", await surface.key("admin"), b"{")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    empty = await _send(surface, "PUT", "/api/admin/rates", await surface.key("admin"))
    assert (empty.status_code, empty.json()["code"]) == (400, "invalid_request")


async def test_a_question_that_is_none_is_refused_with_its_parameter(surface: Any) -> None:
    key = await surface.key("admin")
    for query, param in (
        ("before=0", "before"),
        (f"before={10**30}", "before"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("pattern=%00", "pattern"),
        (f"pattern={'x' * 201}", "pattern"),
    ):
        answer = await surface.get(f"/api/admin/rates/history?{query}", key)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), query
        assert param in answer.json()["error"]
