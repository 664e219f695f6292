"""What the handlers of the FastAPI application ask, and who asks them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from contracts.errors import ErrorCode, HubError
from contracts.rpc.identity import Role
from gateway.admission.prices import Prices
from gateway.auth import credential
from gateway.auth.principals import Principal, Principals
from gateway.auth.roles import at_least
from gateway.kept import KeptAnswers
from gateway.rpc import Peers

SERVICES: Final = "services"
"""Name in the application's state."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a gateway that handlers use."""

    principals: Principals
    prices: Prices
    peers: Peers
    full_name: Callable[[str], Awaitable[str]]
    """A user's name by DID."""
    ready: Callable[[], Awaitable[dict[str, bool]]]
    """Names of what the gateway needs, and whether each answers now."""
    billing: bool
    kept: KeptAnswers
    payment_link: Callable[[], str | None]
    """Where users buy credits, as last known."""


def services(request: Request) -> Services:
    """The parts of the gateway that serves this request."""
    found: Services = getattr(request.app.state, SERVICES)
    return found


async def caller(request: Request) -> Principal:
    """Who calls.

    Raises:
        HubError: `invalid_api_key`, or `service_unavailable` while keys cannot be checked.
    """
    return await services(request).principals.authenticate(credential.bearer(request.scope["headers"]))


def needs(role: Role) -> Callable[[Principal], Awaitable[None]]:
    """A dependency that lets a role and those above it pass."""

    async def check(principal: Annotated[Principal, Depends(caller)]) -> None:
        if not at_least(principal.role, role):
            raise HubError(ErrorCode.FORBIDDEN, f"This needs the role {role} or one above it.")

    return check


Used = Annotated[Services, Depends(services)]
Caller = Annotated[Principal, Depends(caller)]
