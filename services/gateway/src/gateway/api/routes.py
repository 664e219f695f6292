"""Every path of the HTTP surface: who serves it, which role it needs, in which shape its errors come.

The chat paths are served by `gateway.api.exchange` before this application is asked; here they are only described.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from contracts.errors import ErrorCode
from contracts.rpc import rate_changes as asked
from contracts.rpc.identity import Role
from gateway.api import (
    calls,
    credit,
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
ADMIN_PREFIXES: Final = (
    "/api/ai-providers/",
    "/api/ai/",
    "/api/user/",
    "/api/admin/",
    "/api/credit/",
    "/api/migration/",
    "/api/payment/",
)
"""Of paths whose refusals have the admin API's shape."""
