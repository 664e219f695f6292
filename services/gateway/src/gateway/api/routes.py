"""Every path of the HTTP surface: who serves it, which role it needs, in which shape its errors come.

The chat paths are served by `gateway.api.exchange` before this application is asked; here they are only described.
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any, Final, Literal, NamedTuple

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from contracts.errors import ERRORS, ErrorCode, HubError
from contracts.rpc import rate_changes as asked
from contracts.rpc.identity import Role
from gateway.admission import chat_body
from gateway.api import (
    bodies,
    calls,
    credit,
    errors,
    migration,
    model_rates,
    models,
    payment,
    public_models,
    rate_batches,
    rate_shapes,
    rates,
    resume,
    status,
    user,
    user_credit,
)
from gateway.api.dialects import CHAT_PATHS
from gateway.api.edge import READS, REQUEST_ID, Edge
from gateway.api.services import SERVICES, Services, needs

Shape = Literal["openai", "admin"]


class Route(NamedTuple):
    """One path."""

    path: str
    handler: Callable[..., Any]
    role: Role | None
    """Least role; None = anybody, without a key."""
    shape: Shape
    """Of its error bodies."""
    refusals: tuple[ErrorCode, ...] = ()
    """Beside those of every path that needs a key."""
    methods: tuple[str, ...] = ("GET",)
    body: type[BaseModel] | None = None
    """What it reads, for the document; the handler reads it by `gateway.api.bodies`."""
    signed: bool = False
    """Needs no key, but the application's signature (`runtime.component_call`)."""


RESUME_PATH: Final = "/api/v2/calls/{call_id}/stream"
_E = ErrorCode
_CHANGE: Final = (_E.INVALID_REQUEST, _E.INVALID_JSON, _E.NOT_FOUND, _E.CONFLICT, _E.PAYLOAD_TOO_LARGE)
_MODEL_RATES: Final[tuple[tuple[str, str, Callable[..., Any], tuple[ErrorCode, ...], type[BaseModel] | None], ...]] = (
    ("GET", "/model-rates", model_rates.listed, (_E.INVALID_REQUEST,), None),
    ("POST", "/model-rates", rate_batches.create_everywhere, _CHANGE, rate_batches.EverywhereBody),
    ("POST", "/model-rates/batch", rate_batches.batch, _CHANGE, rate_batches.BatchDocument),
    ("POST", "/bulk-rate-update", rate_batches.bulk, _CHANGE, rate_batches.BulkBody),
    ("GET", "/{provider}/model-rates", model_rates.of_provider, (_E.INVALID_REQUEST,), None),
    ("POST", "/{provider}/model-rates", model_rates.create, _CHANGE, rate_shapes.NewRateBody),
    ("PUT", "/{provider}/model-rates/{rate_id}", model_rates.update, _CHANGE, rate_shapes.RateBody),
    ("DELETE", "/{provider}/model-rates/{rate_id}", model_rates.remove, _CHANGE, None),
)
ROUTES: Final = (
    Route("/healthz", status.healthz, None, "openai", (_E.SERVICE_UNAVAILABLE,), ("GET", "HEAD")),
    Route("/api/v2/models", models.listed, "guest", "openai"),
    Route("/v1/models", models.listed, "guest", "openai"),
    Route("/api/v2/models/{model_id:path}", models.one, "guest", "openai", (_E.MODEL_NOT_FOUND, _E.MODEL_UNPRICED)),
    Route("/v1/models/{model_id:path}", models.one, "guest", "openai", (_E.MODEL_NOT_FOUND, _E.MODEL_UNPRICED)),
    *(
        Route(f"{prefix}{path}", handler, None, "admin", (_E.INVALID_REQUEST,))
        for prefix in ("/api/ai-providers", "/api/ai")
        for path, handler in (("/models", public_models.priced), ("/chat/models", public_models.grouped))
    ),
    *(
        Route(f"{prefix}{path}", handler, "admin", "admin", refusals, (method,), body)
        for prefix in ("/api/ai-providers", "/api/ai")
        for method, path, handler, refusals, body in _MODEL_RATES
    ),
    Route("/api/v2/calls/{call_id}", calls.one, "guest", "openai", (_E.NOT_FOUND,)),
    Route(RESUME_PATH, resume.stream, "guest", "openai", (_E.INVALID_REQUEST, _E.NOT_FOUND, _E.SETTLEMENT_TIMEOUT)),
    Route("/api/v2/status", status.available, "guest", "openai", (_E.INVALID_REQUEST,)),
    Route("/api/user/info", user.info, "guest", "admin"),
    Route("/api/admin/rates", rates.listed, "admin", "admin"),
    Route("/api/admin/rates", rates.set_rates, "admin", "admin", _CHANGE, ("PUT",), asked.RatesSet),
    Route("/api/admin/rates", rates.remove, "admin", "admin", _CHANGE, ("DELETE",)),
    Route("/api/admin/rates/history", rates.history, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/admin/rates/deprecation", rates.deprecate, "admin", "admin", _CHANGE, ("PUT",), asked.RatesDeprecate),
    Route("/api/admin/rates/sync", rates.sync, "admin", "admin", _CHANGE, ("POST",), asked.RatesSync),
    Route("/api/admin/rates/margin", rates.margin, "admin", "admin", _CHANGE, ("POST",), asked.RatesMargin),
    Route("/api/admin/rates/check", rates.check, "admin", "admin", _CHANGE, ("POST",), asked.RatesCheck),
    Route("/api/admin/rates/proposals", rates.proposals, "admin", "admin"),
    Route("/api/admin/rates/decision", rates.decide, "admin", "admin", _CHANGE, ("POST",), asked.RatesDecide),
    Route("/api/user/credit/balance", user_credit.balance, "guest", "admin"),
    Route("/api/user/credit/grants", user_credit.grants, "guest", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/user/credit/transactions", user_credit.transactions, "guest", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/user/credit/statement", user_credit.statement, "guest", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/user/credit/payment-link", user_credit.payment_link, "guest", "admin"),
    Route("/api/credit/accounts", credit.accounts, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/credit/balance", credit.balance, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/credit/grants", credit.grants, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/credit/transactions", credit.transactions, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/credit/statement", credit.statement, "admin", "admin", (_E.INVALID_REQUEST,)),
    Route("/api/credit/grants", credit.grant, "admin", "admin", _CHANGE, ("POST",), credit.GrantBody),
    Route(
        "/api/credit/adjustments", credit.adjust, "admin", "admin", _CHANGE, ("POST",), credit.AdjustmentBody
    ),
    Route(
        "/api/credit/refunds", credit.refund, "admin", "admin", _CHANGE, ("POST",),
        credit.RefundBody,
    ),
    Route(
        "/api/credit/expiries", credit.expire, "admin", "admin", _CHANGE, ("POST",),
        credit.ExpiryBody,
    ),
    Route("/api/migration/grants", migration.grants, "admin", "admin", _CHANGE, ("POST",), migration.GrantsBody),
    Route("/api/migration/status", migration.status, "admin", "admin"),
    Route(
        payment.CALLBACK_PATH,
        payment.callback,
        None,
        "admin",
        (_E.NOT_FOUND, _E.PAYLOAD_TOO_LARGE, _E.SERVICE_UNAVAILABLE),
        ("POST",),
        signed=True,
    ),
)  # fmt: skip
_KEY_REFUSALS: Final = (_E.INVALID_API_KEY, _E.FORBIDDEN, _E.SERVICE_UNAVAILABLE)
_CHAT_REFUSALS: Final = (
    _E.INVALID_REQUEST,
    _E.INVALID_API_KEY,
    _E.NOT_ENOUGH_CREDIT,
    _E.FORBIDDEN,
    _E.MODEL_NOT_FOUND,
    _E.REQUEST_TIMEOUT,
    _E.IDEMPOTENCY_CONFLICT,
    _E.IDEMPOTENCY_MISMATCH,
    _E.PAYLOAD_TOO_LARGE,
    _E.UPSTREAM_RATE_LIMITED,
    _E.UPSTREAM_UNAVAILABLE,
    _E.SERVICE_UNAVAILABLE,
    _E.UPSTREAM_TIMEOUT,
)
_ADMIN_PREFIXES: Final = (
    "/api/ai-providers/",
    "/api/ai/",
    "/api/user/",
    "/api/admin/",
    "/api/credit/",
    "/api/migration/",
    "/api/payment/",
)
_REQUEST_SCHEMA: Final = "ChatCompletionRequest"
_ERROR_SCHEMA: Final = "Error"


def build(services: Services | None, mount_path: str = "") -> FastAPI:
    """The application; without services it only describes itself (`app.openapi()`).

    Args:
        services: what the handlers ask.
        mount_path: prefix of every path, empty = none.
    """
    app = FastAPI(
        title="AIGNE Hub",
        version=metadata.version("aigne-hub-gateway"),
        summary="An AI gateway that meters every call and charges it exactly once.",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{mount_path}/openapi.json",
        redirect_slashes=False,
    )
    setattr(app.state, SERVICES, services)
    for route in ROUTES:
        refusals = (*route.refusals, *(_KEY_REFUSALS if route.role is not None else ()))
        app.add_api_route(
            mount_path + route.path,
            route.handler,
            methods=list(route.methods[:1]),
            dependencies=[] if route.role is None else [Depends(needs(route.role))],
            responses=_responses(refusals, route.shape),
            operation_id=_operation_id(route),
            openapi_extra=None if route.body is None else {"requestBody": bodies.described(route.body)},
            tags=[_tag(route)],
        )
        if len(route.methods) > 1:
            app.add_api_route(
                mount_path + route.path, route.handler, methods=list(route.methods[1:]), include_in_schema=False
            )
    app.add_middleware(Edge)
    _add_error_handlers(app, mount_path)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        return _with_chat(described(), mount_path)

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add_error_handlers(app: FastAPI, mount_path: str) -> None:
    def refuse(request: Request, error: HubError, extra: dict[str, str] | None = None) -> Response:
        is_repeatable = request.method in READS
        headers = dict(errors.headers(error, getattr(request.state, REQUEST_ID), is_repeatable=is_repeatable))
        path = request.scope["path"].removeprefix(mount_path)
        body = errors.admin_body(error) if path.startswith(_ADMIN_PREFIXES) else errors.body(error)
        texts = {name.decode(): value.decode() for name, value in headers.items()}
        return Response(body, error.status, texts | (extra or {}))

    async def on_hub_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HubError):
            raise error
        return refuse(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        return refuse(request, HubError(ErrorCode.INVALID_REQUEST, f"`{param}`: {first['msg']}.", param=param))

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        method, path = request.method, request.scope["path"]
        allowed = (error.headers or {}).get("Allow", "")
        if path.removeprefix(mount_path) in CHAT_PATHS and path.startswith(mount_path):
            allowed = "POST"
        if allowed:
            wrong_method = HubError(ErrorCode.METHOD_NOT_ALLOWED, f"This path takes {allowed}, not {method}.")
            return refuse(request, wrong_method, {"allow": allowed})
        return refuse(request, HubError(ErrorCode.NOT_FOUND, f"There is no {method} {path[:200]} here."))

    app.add_exception_handler(HubError, on_hub_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _tag(route: Route) -> str:
    if route.role is not None:
        return f"role {route.role}"
    return "signed" if route.signed else "public"


def _operation_id(route: Route) -> str:
    words = route.path.replace("{", "").replace(":path", "").replace("}", "").strip("/").split("/")
    return "_".join([route.methods[0].lower(), *words])


def _responses(refusals: tuple[ErrorCode, ...], shape: Shape) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses: one per status, naming the codes that come with it."""
    by_status: dict[int | str, list[ErrorCode]] = {}
    for code in sorted(set(refusals), key=list(ErrorCode).index):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    schema = {"$ref": f"#/components/schemas/{'AdminError' if shape == 'admin' else _ERROR_SCHEMA}"}
    return {
        number: {
            "description": " ".join(f"`{code}`: {ERRORS[code].meaning}" for code in codes),
            "content": {"application/json": {"schema": schema}},
        }
        for number, codes in sorted(by_status.items(), key=lambda item: int(item[0]))
    }


def _with_chat(document: dict[str, Any], mount_path: str) -> dict[str, Any]:
    """The document with the chat paths, error bodies and the key; the same object, changed once."""
    components = document.setdefault("components", {})
    if "securitySchemes" in components:
        return document
    components["securitySchemes"] = {"accessKey": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"accessKey": []}]
    schemas = components.setdefault("schemas", {})
    _, error_schemas = msgspec.json.schema_components(
        [errors.ErrorBody, errors.AdminError], ref_template="#/components/schemas/{name}"
    )
    schemas.update(error_schemas)
    schemas[_ERROR_SCHEMA] = schemas.pop("ErrorBody")
    schemas.update(chat_body.json_schema(_REQUEST_SCHEMA))
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own 422, which is a 400 here
        schemas.pop(name, None)
    for item in document["paths"].values():
        for operation in item.values():
            operation["responses"].pop("422", None)
    for path in CHAT_PATHS:
        words = path.strip("/").replace("/", "_")
        document["paths"][mount_path + path] = {"post": _chat_operation(f"post_{words}")}
    document["paths"][mount_path + RESUME_PATH]["get"]["responses"]["200"] = _answer("The rest of the answer.")
    for route in ROUTES:
        if route.role is None:
            document["paths"][mount_path + route.path][route.methods[0].lower()]["security"] = []
    return document


def _answer(description: str) -> dict[str, Any]:
    """OpenAPI response of an answer."""
    answer = {"description": "OpenAI's `chat.completion`, with `usage.credits` and `usage.call_id`.", "type": "object"}
    events = {"description": "OpenAI's `chat.completion.chunk` events, then `[DONE]`.", "type": "string"}
    content = {"application/json": {"schema": answer}, "text/event-stream": {"schema": events}}
    return {"description": description, "content": content}


def _chat_operation(operation_id: str) -> dict[str, Any]:
    return {
        "summary": "Chat completion",
        "description": "OpenAI's chat completion; unknown fields go to the provider as they are. Success is answered "
        "when the call is in the books. A request that repeats an `Idempotency-Key` gets the answer of the first one, "
        "with `idempotent-replayed: true`. Events of a stream with `x-hub-resumable: true` are numbered: the rest of a "
        "stream that was lost is at `GET /api/v2/calls/{x-call-id}/stream`.",
        "operationId": operation_id,
        "tags": ["role guest"],
        "parameters": [
            {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}},
            {"name": "x-hub-resumable", "in": "header", "schema": {"type": "string", "enum": ["true", "false"]}},
            {"name": "x-request-id", "in": "header", "schema": {"type": "string", "maxLength": 128}},
            {"name": "x-aigne-hub-client-did", "in": "header", "schema": {"type": "string", "maxLength": 200}},
            {"name": "traceparent", "in": "header", "schema": {"type": "string"}},
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{_REQUEST_SCHEMA}"}}},
        },
        "responses": {
            "200": _answer("The answer, whole or as a stream of events."),
            **{str(number): response for number, response in _responses(_CHAT_REFUSALS, "openai").items()},
        },
    }
