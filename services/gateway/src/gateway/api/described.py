"""The OpenAPI document: what FastAPI cannot see of the surface, and the chat paths that are not its own."""

from typing import Any, Final

import msgspec

from contracts.errors import ERRORS, ErrorCode
from gateway.admission import chat_body
from gateway.api import errors
from gateway.api.dialects import CHAT_PATHS
from gateway.api.routes import RESUME_PATH, ROUTES, Route, Shape

_E = ErrorCode
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
_REQUEST_SCHEMA: Final = "ChatCompletionRequest"
_ERROR_SCHEMA: Final = "Error"


def tag(route: Route) -> str:
    """Who may ask."""
    if route.role is not None:
        return f"role {route.role}"
    return "signed" if route.signed else "public"


def operation_id(route: Route) -> str:
    """A name of its own for each path and method."""
    words = route.path.replace("{", "").replace(":path", "").replace("}", "").strip("/").split("/")
    return "_".join([route.methods[0].lower(), *words])


def responses(refusals: tuple[ErrorCode, ...], shape: Shape) -> dict[int | str, dict[str, Any]]:
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


def with_chat(document: dict[str, Any], mount_path: str) -> dict[str, Any]:
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
            **{str(number): response for number, response in responses(_CHAT_REFUSALS, "openai").items()},
        },
    }
