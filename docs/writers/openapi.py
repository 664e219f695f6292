"""`openapi.json`: the HTTP surface, as the gateway describes it."""

from typing import Any

from gateway.api import routes


def document() -> dict[str, Any]:
    """The OpenAPI document; no service is needed for it."""
    return routes.build(None).openapi()
