"""`openapi.json`: the HTTP surface, as the gateway describes it."""

from typing import Any

from gateway.api.application import build


def document() -> dict[str, Any]:
    """The OpenAPI document; no service is needed for it."""
    return build(None).openapi()
