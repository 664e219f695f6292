"""The FastAPI application: every path of `gateway.api.routes`, and refusals in the shape of each."""

from importlib import metadata
from typing import Any, Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from contracts.errors import ErrorCode, HubError
from gateway.api import bodies, errors
from gateway.api.described import operation_id, responses, tag, with_chat
from gateway.api.dialects import CHAT_PATHS
from gateway.api.edge import READS, REQUEST_ID, Edge
from gateway.api.routes import ADMIN_PREFIXES, ROUTES
from gateway.api.services import SERVICES, Services, needs

_KEY_REFUSALS: Final = (ErrorCode.INVALID_API_KEY, ErrorCode.FORBIDDEN, ErrorCode.SERVICE_UNAVAILABLE)


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
            responses=responses(refusals, route.shape),
            operation_id=operation_id(route),
            openapi_extra=None if route.body is None else {"requestBody": bodies.described(route.body)},
            tags=[tag(route)],
        )
        if len(route.methods) > 1:
            app.add_api_route(
                mount_path + route.path, route.handler, methods=list(route.methods[1:]), include_in_schema=False
            )
    app.add_middleware(Edge)
    _add_error_handlers(app, mount_path)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        return with_chat(described(), mount_path)

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add_error_handlers(app: FastAPI, mount_path: str) -> None:
    def refuse(request: Request, error: HubError, extra: dict[str, str] | None = None) -> Response:
        is_repeatable = request.method in READS
        headers = dict(errors.headers(error, getattr(request.state, REQUEST_ID), is_repeatable=is_repeatable))
        path = request.scope["path"].removeprefix(mount_path)
        body = errors.admin_body(error) if path.startswith(ADMIN_PREFIXES) else errors.body(error)
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
