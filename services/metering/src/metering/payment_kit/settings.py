"""Settings of the Payment Kit adapter."""

from decimal import Decimal
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from contracts.rpc.rate_changes import CREDIT_PRICE_LIMIT, CREDIT_PRICE_MIN
from runtime.component_call import AppKey
from runtime.settings import DatabaseSettings, checked_link

COMPONENT_DID = "z8ia3xzq2tMq8CRHfaXj1BTYJyYnEcHbqP8cJ"
"""Of the original's component: Payment Kit knows it."""


class PaymentKitSettings(DatabaseSettings):
    """All of it is inert without `payment_kit_url`."""

    payment_kit_url: str = Field(
        "", description="Payment Kit, e.g. https://pay.example.com/payment; empty: the built-in ledger alone."
    )
    payment_kit_app_key: SecretStr | None = Field(
        None, description="Secret key of the application, Ed25519, hex or base58: it signs calls and webhooks."
    )
    payment_kit_component_did: str = Field(COMPONENT_DID, description="DID of the component that calls Payment Kit.")
    payment_kit_livemode: bool = Field(default=True, description="`false`: Payment Kit's test mode.")
    payment_kit_unit: Literal["USD", "credits"] = Field(
        "USD", description="Unit of the meter: USD (meter agent-hub-ai-meter-v2), or the older credits."
    )
    credit_price: Decimal = Field(
        Decimal(1),
        ge=CREDIT_PRICE_MIN,
        lt=CREDIT_PRICE_LIMIT,
        allow_inf_nan=False,
        description="US dollars for one credit.",
    )
    payment_link: str | None = Field(
        None,
        max_length=2000,
        description="Where users buy credits: an http or https URL, or a path of Payment Kit that begins with /. "
        "Empty: made there, where there is one.",
    )
    payment_kit_batch_s: float = Field(
        0.0, ge=0, le=86_400, description="Seconds of calls in one meter event per user and project; 0: one per call."
    )
    payment_kit_workers: int = Field(8, gt=0, le=64, description="Meter events that one process sends at a time.")
    payment_kit_paused: bool = Field(default=False, description="Send no meter events; they are kept.")
    payment_kit_timeout_s: float = Field(10.0, gt=0, le=120, description="Longest wait for one answer of Payment Kit.")
    payment_kit_server_s: float = Field(
        60.0, ge=0, le=3600, description="How long Payment Kit may still work on a call that we no longer wait for."
    )
    payment_kit_backoff_max_s: float = Field(300.0, gt=0, le=3600, description="Longest wait between two tries.")
    payment_kit_dedup_s: float = Field(
        86_400.0, gt=0, description="For how long Payment Kit is trusted to know an identifier again."
    )
    payment_kit_refresh_s: float = Field(
        60.0, gt=0, le=86_400, description="Age at which the mirrored balance of an active account is read again."
    )

    @field_validator("payment_kit_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        split = urlsplit(url)
        if url and (split.scheme not in {"http", "https"} or not split.netloc or split.query or split.fragment):
            raise ValueError("an http or https URL without a query")
        return url.rstrip("/")

    @field_validator("payment_kit_app_key")
    @classmethod
    def _is_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            AppKey.read(key.get_secret_value())
        return key

    @field_validator("payment_link")
    @classmethod
    def _link(cls, link: str | None) -> str | None:
        return checked_link(link)

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        if self.payment_kit_url and self.payment_kit_app_key is None:
            raise ValueError("HUB_PAYMENT_KIT_URL needs HUB_PAYMENT_KIT_APP_KEY")
        if not self.payment_kit_url and self.payment_link is not None and self.payment_link.startswith("/"):
            raise ValueError("HUB_PAYMENT_LINK is a path of Payment Kit, and HUB_PAYMENT_KIT_URL names none")
        return self
