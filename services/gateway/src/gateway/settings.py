"""Settings of the gateway, read once in `__main__`."""

from decimal import Decimal
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from contracts.money import checked
from gateway.auth.access_keys import key_id
from runtime.settings import DatabaseSettings, checked_link

_MIB = 2**20


class Settings(DatabaseSettings):
    """What a gateway can be told."""

    host: str = Field("127.0.0.1", description="Address of the HTTP API.")
    port: int = Field(8080, gt=0, le=65535, description="Port of the HTTP API.")
    mount_path: str = Field("", description="Path prefix of everything, e.g. /ai-kit; empty = none.")
    key_pepper: SecretStr = Field(
        min_length=16, description="Secret of the keyed digest under which access keys are stored; the same everywhere."
    )
    bootstrap_key: SecretStr | None = Field(
        None, description="Access key of the first owner (blocklet-z…); without it one is made and printed once."
    )
    welcome_credits: Decimal = Field(Decimal(100), ge=0, description="Credits granted to the first owner, once.")
    new_user_credits: Decimal = Field(
        Decimal(0), ge=0, description="Credits of a new user, given once with a key; 0 = none."
    )
    welcome_days: int = Field(
        0, ge=0, le=36_500, description="Days after which unused welcome credits are gone; 0 = never."
    )
    payment_link: str | None = Field(
        None,
        max_length=2000,
        description="Where users buy credits: an http or https URL, or a path of Payment Kit that begins with /. "
        "Empty: made there, where there is one.",
    )
    unpriced: Literal["refuse", "free"] = Field(
        "refuse", description="Models without a price while billing is on: refused, or served for nothing."
    )
    default_model: str = Field(
        "openai/gpt-5-mini", min_length=1, description="Model of a chat request that names none."
    )
    hold_output_tokens: int = Field(
        4096, gt=0, le=10_000_000, description="Output tokens held per answer at first; the hold grows while one runs."
    )

    body_bytes_max: int = Field(30 * _MIB, gt=0, description="Largest request body; above it 413.")
    body_timeout_s: float = Field(30.0, gt=0, description="Longest time for a request body to arrive; then 408.")
    headers_max: int = Field(100, gt=0, description="Most request headers; above it 431.")
    header_bytes_max: int = Field(32_768, gt=0, description="Bytes of all request headers and the URL; above it 431.")
    header_timeout_s: float = Field(10.0, gt=0, description="Longest time for the headers to arrive; then 408.")

    accept_s: float = Field(2.0, gt=0, description="Longest wait for a provider-router to accept a call; then 503.")
    first_byte_s: float = Field(65.0, gt=0, description="Longest wait for an answer's first frame; then 504.")
    idle_s: float = Field(35.0, gt=0, description="Longest silence between two frames of an answer; then 504.")
    settle_s: float = Field(5.0, gt=0, description="Longest wait for the books after an answer's last byte.")
    call_ttl_s: float = Field(600.0, gt=0, description="Longest life of one call.")
    calls_max: int = Field(4000, gt=0, description="Open calls of one gateway; above it 503 overloaded.")
    lease_s: float = Field(30.0, gt=0, description="Lease of a running call, renewed by its router.")

    @field_validator("mount_path")
    @classmethod
    def _path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and (not path.startswith("/") or "//" in path or not path.isascii() or any(c in path for c in "?#% ")):
            raise ValueError("a mount path is empty or begins with a slash and has no ?, #, % or space: /ai-kit")
        return path

    @field_validator("payment_link")
    @classmethod
    def _link(cls, value: str | None) -> str | None:
        return checked_link(value)

    @field_validator("welcome_credits", "new_user_credits")
    @classmethod
    def _credits(cls, value: Decimal) -> Decimal:
        return checked(value)

    @field_validator("bootstrap_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and key_id(value.get_secret_value()) is None:
            raise ValueError("an access key is blocklet- and the base58 text (z…) of an Ed25519 public key")
        return value
