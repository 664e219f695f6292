"""Bodies of the admin API: read within a bound once the caller is known, validated, or refused with the field."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from contracts.errors import ErrorCode, HubError

B = TypeVar("B", bound=BaseModel)
BODY_BYTES_MAX: Final = 256 * 2**10
_NOT_JSON: Final = "json_invalid"
_OURS: Final = frozenset({"changed_by"})
"""Fields that the hub fills in."""


def reads(model: type[B]) -> Callable[[Request], Awaitable[B]]:
    """A dependency that gives the request's body as this model.

    Raises:
        HubError: `payload_too_large`, `invalid_json`, or `invalid_request` with the field.
    """

    async def read(request: Request) -> B:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES_MAX:
                raise HubError(ErrorCode.PAYLOAD_TOO_LARGE, f"The body is above the limit of {BODY_BYTES_MAX} bytes.")
        try:
            return model.model_validate_json(bytes(body) or b"{}")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            if first["type"] == _NOT_JSON:
                raise HubError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {first['msg']}.") from None
            param = ".".join(str(part) for part in first["loc"])
            raise HubError(ErrorCode.INVALID_REQUEST, f"`{param}`: {first['msg']}.", param=param) from None

    return read


def described(model: type[BaseModel]) -> dict[str, Any]:
    """`requestBody` of an OpenAPI operation, with every schema spelt out in place."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    schema["properties"] = {name: field for name, field in schema["properties"].items() if name not in _OURS}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}
