import itertools
from decimal import Decimal
from typing import Any

import pytest

from contracts.errors import ErrorCode
from contracts.ids import new_call_id
from contracts.rpc.model_calls import AttemptView, CallView
from gateway.api import routes
from gateway.api.application import build
from gateway.api.dialects import CHAT_PATHS

PATHS_WITH_KEY = [(route.methods[0], route.path) for route in routes.ROUTES if route.role is not None]
HEADERS_OF_STRANGERS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer nonsense"},
    {"x-user-did": "z1", "x-user-role": "owner"},
)


def _concrete(path: str) -> str:
    path = path.replace("{provider}", "openai").replace("{rate_id}", "r1")
    return path.replace("{model_id:path}", "openai/gpt-4o").replace("{call_id}", new_call_id())


def _call(account: str) -> CallView:
    attempt = AttemptView(
        number=1,
        provider="openai",
        model="gpt-4o",
        credential="main",
        status=200,
        error="",
        started_ms=0,
        duration_ms=5,
        first_byte_ms=2,
    )
    zero = Decimal(0)
    values: dict[str, Any] = {
        "call_id": new_call_id(),
        "state": "success",
        "outcome": "stop",
        "account": account,
        "kind": "chat",
        "dialect": "openai",
        "model": "gpt-4o",
        "provider": "openai",
        "provider_model": "gpt-4o",
        "credential": "main",
        "stream": False,
        "hold": Decimal(2),
        "credits": Decimal("0.00123"),
        "overrun": zero,
        "written_off": zero,
        "usage": {"input_tokens": 5, "source": "reported"},
        "attempts": (attempt,),
        "created_at": "2026-11-26T00:00:00.000Z",
    }
    texts = dict.fromkeys(("user", "project", "key_id", "trace_id", "request_id"), "")
    absent = dict.fromkeys(
        ("error_code", "error_reason", "duration_s", "first_byte_ms", "provider_first_byte_ms", "settled_at")
    )
    return CallView(**values, **texts, **absent)


async def test_models_are_listed_in_openais_shape_on_both_mounts(surface: Any) -> None:
    key = await surface.key()
    for path in ("/api/v2/models", "/v1/models"):
        answer = await surface.get(path, key)
        assert answer.status_code == 200
        body = answer.json()
        assert body["object"] == "list"
        assert [(model["id"], model["object"], model["owned_by"]) for model in body["data"]] == [
            ("demo/echo", "model", "demo"),
            ("openai/gpt-4o", "model", "openai"),
        ]
        assert body["data"][1]["created"] == 1793491200
        assert body["data"][1]["output_credits_per_token"] == "0.00001"


@pytest.mark.parity(109)
async def test_anybody_can_read_what_models_cost(surface: Any) -> None:
    for prefix in ("/api/ai-providers", "/api/ai"):
        for kind in ("", "?type=chat", "?type=chatCompletion"):
            answer = await surface.http.get(f"{prefix}/models{kind}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
            demo, openai = answer.json()
            assert (demo["key"], demo["modelMetadata"]) == ("demo/echo", None)
            assert openai == {
                "key": "openai/gpt-4o", "model": "gpt-4o", "type": "chat", "provider": "openai", "providerId": "openai",
                "providerDisplayName": "openai", "input_credits_per_token": "0.0000025",
                "output_credits_per_token": "0.00001", "status": None,
                "modelMetadata": {"maxTokens": 128_000, "features": ["tools"], "imageGeneration": None},
            }  # fmt: skip
        chat = (await surface.http.get(f"{prefix}/chat/models")).json()
        assert [model["model"] for model in chat] == ["echo", "gpt-4o"]
        assert chat[1]["providers"] == [{"id": "openai", "name": "openai", "displayName": "openai"}]
        assert [model["description"] for model in chat] == ["", "For all and sundry"]
        (rate,) = chat[1]["rates"]
        assert rate["description"] == "For all and sundry"
        assert (rate["type"], rate["inputRate"], rate["outputRate"]) == ("chatCompletion", "0.0000025", "0.00001")
        for path in ("models", "chat/models"):
            assert (await surface.http.get(f"{prefix}/{path}?type=embedding")).json() == []
            wrong = await surface.http.get(f"{prefix}/{path}?type=sound")
            assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("name", ["openai/gpt-4o", "openai%2Fgpt-4o", "openai%2fgpt-4o", "gpt-4o"])
async def test_one_model_is_found_with_its_slash_encoded_or_not(surface: Any, name: str) -> None:
    key = await surface.key()
    for mount in ("/api/v2", "/v1"):
        answer = await surface.get(f"{mount}/models/{name}", key)
        assert (answer.status_code, answer.json()["id"]) == (200, "openai/gpt-4o")


async def test_an_unknown_and_an_unpriced_model_are_told_apart(surface: Any) -> None:
    key = await surface.key()
    unknown, unpriced = await surface.get("/v1/models/nope", key), await surface.get("/v1/models/unpriced", key)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (unpriced.status_code, unpriced.json()["error"]["code"]) == (400, "model_unpriced")


async def test_an_answer_is_given_to_the_user_who_made_the_call_only(surface: Any) -> None:
    own, owner = await surface.key(), await surface.key("owner")
    foreign = _call(own.account)
    surface.books.calls[foreign.call_id] = foreign
    path = f"/api/v2/calls/{foreign.call_id}/stream"
    assert foreign.user != own.user
    answers = [await surface.get(path, key) for key in (own, owner)]
    answers.append(await surface.get("/api/v2/calls/x/stream", own))
    assert {(answer.status_code, answer.json()["error"]["message"]) for answer in answers} == {
        (404, "There is no such call.")
    }


async def test_a_call_is_shown_to_its_account_and_to_administrators_only(surface: Any) -> None:
    own, other, admin = await surface.key(), await surface.key(), await surface.key("admin")
    call = _call(own.account)
    surface.books.calls[call.call_id] = call
    path = f"/api/v2/calls/{call.call_id}"
    mine = await surface.get(path, own)
    assert (mine.status_code, mine.json()["credits"]) == (200, "0.0012300000")
    assert (mine.json()["credential"], mine.json()["attempts"][0]["credential"]) == (None, "")
    foreign = await surface.get(path, other)
    unknown = await surface.get(f"/api/v2/calls/{new_call_id()}", other)
    malformed = await surface.get("/api/v2/calls/1'%20or%201=1", other)
    assert [answer.status_code for answer in (foreign, unknown, malformed)] == [404, 404, 404]
    assert foreign.json()["error"]["message"] == unknown.json()["error"]["message"]
    assert (await surface.get(path, admin)).json()["attempts"][0]["credential"] == "main"


@pytest.mark.parity(35)
@pytest.mark.parametrize(
    ("method", "path"),
    [(route.methods[0], route.path) for route in routes.ROUTES if route.path.startswith("/api/credit/")],
)
async def test_credit_of_others_is_for_administrators_only(surface: Any, method: str, path: str) -> None:
    answer = await surface.http.request(
        method, path, headers={"authorization": f"Bearer {(await surface.key()).key}"}, content=b"no JSON"
    )
    assert (answer.status_code, answer.json()) == (403, {"code": "forbidden", "error": "no permission"})


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"no JSON", 400, "invalid_json"),
        (b"[]", 400, "invalid_request"),
        (b"{}", 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":1.5}', 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":"NaN"}', 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":"-1"}', 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":"0"}', 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":"1e18"}', 400, "invalid_request"),
        (b'{"id":"mine","account":"a","amount":"1"}', 400, "invalid_request"),
        (b'{"id":"0b0f7a52-6a0e-4d53-9a55-4c3b8d5f0c21","account":"a","amount":"1","x":1}', 400, "invalid_request"),
        (b" " * 300_000, 413, "payload_too_large"),
    ],
)
async def test_a_grant_that_is_none_never_reaches_the_books(surface: Any, body: bytes, status: int, code: str) -> None:
    headers = {"authorization": f"Bearer {(await surface.key('admin')).key}"}
    answer = await surface.http.post("/api/credit/grants", headers=headers, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["error"]
    assert surface.books.grants == []


@pytest.mark.parity(22)
async def test_status_is_always_200_and_says_why_not(surface: Any) -> None:
    key = await surface.key()

    async def status(query: str = "") -> tuple[bool, int | None, str | None]:
        answer = await surface.get(f"/api/v2/status{query}", key)
        assert answer.status_code == 200
        body = answer.json()
        return body["available"], body["code"], body["type"]

    assert await status() == (False, 402, "NOT_ENOUGH")
    surface.books.balances[key.account] = Decimal(5)
    assert await status() == (True, None, None)
    assert await status("?model=openai/gpt-4o") == (True, None, None)
    assert await status("?model=nope") == (False, 404, "invalid_request_error")
    assert await status("?model=unpriced") == (False, 400, "invalid_request_error")
    assert (await surface.get(f"/api/v2/status?model={'m' * 300}", key)).status_code == 400


async def test_user_info_has_the_originals_names_and_decimal_strings(surface: Any) -> None:
    key = await surface.key("admin")
    surface.books.balances[key.account] = Decimal("4.25")
    body = (await surface.get("/api/user/info", key)).json()
    assert body["user"] == {"did": key.user, "fullName": "", "email": "", "avatar": ""}
    assert body["creditBalance"] == {
        "balance": "4.2500000000",
        "total": "5.2500000000",
        "pendingCredit": "1.0000000000",
        "grantCount": 0,
    }
    assert (body["enableCredit"], body["role"]) == (True, "admin")


async def test_an_account_that_was_never_opened_has_nothing(surface: Any) -> None:
    body = (await surface.get("/api/user/info", await surface.key())).json()
    assert body["creditBalance"]["balance"] == "0.0000000000"


@pytest.mark.parity(35, 36)
async def test_every_path_with_a_role_refuses_strangers_in_its_own_shape(surface: Any) -> None:
    for (method, path), headers in itertools.product(PATHS_WITH_KEY, HEADERS_OF_STRANGERS):
        answer = await surface.http.request(method, _concrete(path), headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-should-retry"] == "false"
        if path.startswith(("/api/user", "/api/admin", "/api/credit", "/api/ai", "/api/migration")):
            assert answer.json() == {"code": "forbidden", "error": "not authorized"}
        else:
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_database_that_is_away_is_503_and_not_401(surface: Any) -> None:
    key = await surface.key()
    await surface.node.pool.close()
    answer = await surface.get("/v1/models", key)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["code"] == "service_unavailable"


async def test_unknown_paths_and_methods_answer_in_openais_shape(surface: Any) -> None:
    for path in ("/", "/api/v2/nothing", "/v1/models/", "/docs", "/../etc/passwd"):
        answer = await surface.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) in {(404, "not_found"), (401, "invalid_api_key")}
    wrong = await surface.http.post("/v1/models")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (
        405,
        "GET",
        "method_not_allowed",
    )
    for path in CHAT_PATHS:
        wrong = await surface.get(path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_health_follows_what_the_gateway_needs(surface: Any) -> None:
    assert (await surface.get("/healthz")).json() == {"status": "ok"}
    assert (await surface.http.head("/healthz")).status_code == 200
    surface.ready["nats"] = False
    answer = await surface.get("/healthz")
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"status": "unavailable"}, "1")


async def test_every_answer_has_ids_cors_and_security_headers(surface: Any) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for path in ("/healthz", "/nothing", "/v1/models"):
        answer = await surface.get(path, **{"x-request-id": "mine-1", "traceparent": traceparent})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-trace-id"] == "0af7651916cd43dd8448eb211c80319c"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert len(answer.headers.get_list("x-request-id")) == 1
    for unusable in ("a b", "x" * 129):
        assert (await surface.get("/healthz", **{"x-request-id": unusable})).headers["x-request-id"] != unusable


@pytest.mark.parity(26)
async def test_a_preflight_passes_from_anywhere(surface: Any) -> None:
    answer = await surface.http.options(
        "/v1/chat/completions",
        headers={
            "origin": "https://anywhere.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
        },
    )
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_bug_is_500_with_a_request_id_and_without_its_cause(
    surface: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(type(surface.prices), "catalog", property(lambda _: broken()))
    answer = await surface.get("/v1/models", await surface.key(), **{"x-request-id": "bug-1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "bug-1" in answer.json()["error"]["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize("mount_path", ["/ai-kit"], indirect=True)
async def test_a_mount_path_prefixes_everything(surface: Any) -> None:
    key = await surface.key()
    assert (await surface.get("/ai-kit/v1/models", key)).status_code == 200
    assert (await surface.get("/ai-kit/healthz")).status_code == 200
    assert (await surface.get("/v1/models", key)).status_code == 404
    assert (await surface.get("/ai-kit/api/user/info")).json() == {"code": "forbidden", "error": "not authorized"}
    assert (await surface.get("/ai-kit/v1/chat/completions")).status_code == 405


def test_the_document_needs_no_running_hub_and_describes_every_path() -> None:
    document = build(None).openapi()
    paths = {path.replace(":path", "") for path in (*(route.path for route in routes.ROUTES), *CHAT_PATHS)}
    assert set(document["paths"]) == paths
    schemas = document["components"]["schemas"]
    for item in document["paths"].values():
        for operation in item.values():
            assert "422" not in operation["responses"]
            assert operation["summary"]
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    reference = content["schema"].get("$ref", "")
                    assert not reference or reference.rpartition("/")[2] in schemas
    assert "NOT_ENOUGH" not in document["paths"]["/healthz"]["get"]["responses"]
    assert (
        str(ErrorCode.IDEMPOTENCY_CONFLICT)
        in document["paths"]["/v1/chat/completions"]["post"]["responses"]["409"]["description"]
    )
    assert build(None).openapi() == document
