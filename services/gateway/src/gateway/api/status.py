"""`GET /api/v2/status` and `/healthz`: whether a call would go through, and whether the gateway is up."""

from typing import Annotated, Literal

from fastapi import Query, Response
from pydantic import BaseModel, Field

from contracts.errors import ERRORS, ErrorCode, HubError
from gateway.admission.chat_body import MODEL_CHARS_MAX
from gateway.admission.reserve import not_enough
from gateway.api.services import Caller, Services, Used
from gateway.auth.principals import Principal


class Available(BaseModel):
    """Always with status 200: the answer is in `available`."""

    available: bool
    error: str | None = Field(None, description="Why not.")
    code: int | None = Field(None, description="Status that a call would be answered with.")
    type: str | None = Field(None, description="`error.type` that a call would be answered with.")
    link: str | None = Field(None, description="Where to buy credits, when they are what is missing.")


class Health(BaseModel):
    """`unavailable` comes with status 503."""

    status: Literal["ok", "unavailable"]


Name = Annotated[str | None, Query(max_length=MODEL_CHARS_MAX, description="`provider/model` or bare name.")]


async def available(used: Used, principal: Caller, model: Name = None) -> Available:
    """Whether the caller could call now: credit left, and the model served and priced."""
    try:
        await _check(used, principal, model)
    except HubError as error:
        kind = ERRORS[error.code].type
        return Available(available=False, error=error.message, code=error.status, type=kind, link=error.link)
    return Available(available=True)


async def _check(used: Services, principal: Principal, model: str | None) -> None:
    if used.billing:
        balance = await used.peers.balance(principal.account)
        if balance.available <= 0:
            raise not_enough("The account has no free credit", used.payment_link())
    if model is not None:
        used.prices.resolve(model)
    elif not used.prices.catalog.models():
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "No provider is configured.")


async def healthz(used: Used, response: Response) -> Health:
    """Whether the gateway can serve calls."""
    if all((await used.ready()).values()):
        return Health(status="ok")
    response.status_code = 503
    response.headers["retry-after"] = "1"
    return Health(status="unavailable")
