"""Settings of provider-router. Provider keys stay in this process; nothing writes them down."""

import ipaddress
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from contracts.rpc.rate_changes import CREDIT_PRICE_LIMIT, CREDIT_PRICE_MIN, PERCENT_LIMIT
from runtime.settings import DatabaseSettings

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
ANTHROPIC_BASE_URL: Final = "https://api.anthropic.com/v1"
DEMO: Final = "demo"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MODEL: Final = re.compile(r"[!-~]{1,200}")
_CREDENTIAL: Final = re.compile(r"[!-~]{1,4096}")


def _listed(value: object) -> object:
    """`a, b` → (`a`, `b`); an empty text is no list."""
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    return names or None


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class ProviderSettings(BaseModel):
    """One provider: `HUB_PROVIDERS__<NAME>__…`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str | None = Field(None, description="Root of its API, e.g. https://llm.example.com/v1.")
    api_key: SecretStr | None = Field(None, description="Sent to this base URL only.")
    kind: Annotated[Literal["openai", "anthropic"] | None, BeforeValidator(_lower)] = Field(
        None, description="Grammar it speaks; openai unless the provider is called anthropic."
    )
    models: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_listed)] = Field(
        None, description="Models that bare names reach, comma-separated; without it only names with its prefix."
    )
    weight: int = Field(100, ge=0, le=10_000, description="Share among providers of one model; 0 = last resort.")

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        return None if url is None else checked_base_url(url)

    @field_validator("api_key")
    @classmethod
    def _key(cls, key: SecretStr | None) -> SecretStr | None:
        return _checked_key(key)

    @field_validator("models")
    @classmethod
    def _models(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(_MODEL.fullmatch(model) is None for model in models or ()):
            raise ValueError("a model name has 1 to 200 printable ASCII characters and no space")
        return models


class Settings(DatabaseSettings):
    """What provider-router reads from the environment."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)

    # First, because the base URLs below are checked against it.
    allow_plain_http: bool = Field(
        default=False, description="Allow http:// base URLs beyond loopback: keys and prompts travel in clear."
    )
    openai_api_key: SecretStr | None = Field(
        None, validation_alias="OPENAI_API_KEY", description="Adds provider openai."
    )
    openai_base_url: str | None = Field(
        None, validation_alias="OPENAI_BASE_URL", description=f"Base URL of provider openai; {OPENAI_BASE_URL}."
    )
    anthropic_api_key: SecretStr | None = Field(
        None, validation_alias="ANTHROPIC_API_KEY", description="Adds provider anthropic."
    )
    anthropic_base_url: str | None = Field(
        None,
        validation_alias="ANTHROPIC_BASE_URL",
        description=f"Base URL of provider anthropic; {ANTHROPIC_BASE_URL}.",
    )
    providers: dict[str, ProviderSettings] = Field(
        default_factory=dict, description="More providers, one group each: HUB_PROVIDERS__<NAME>__BASE_URL and so on."
    )
    demo_provider: Annotated[Literal["on", "off"], BeforeValidator(_lower)] = Field(
        "on", description="The built-in provider demo/echo, which needs no key."
    )
    margin_percent: Decimal = Field(
        Decimal(0),
        ge=0,
        lt=PERCENT_LIMIT,
        allow_inf_nan=False,
        description="On top of what a vendor takes, in percent.",
    )
    credit_price: Decimal = Field(
        Decimal(1),
        ge=CREDIT_PRICE_MIN,
        lt=CREDIT_PRICE_LIMIT,
        allow_inf_nan=False,
        description="US dollars for one credit.",
    )
    lease_s: float = Field(30.0, ge=1, le=3600, description="Seconds a running call lives without renewal.")
    upstream_connect_s: float = Field(3.0, gt=0, le=60, description="Longest wait for a connection to a provider.")
    upstream_first_byte_s: float = Field(60.0, gt=0, le=3600, description="Longest wait for an answer to begin.")
    upstream_idle_s: float = Field(30.0, gt=0, le=3600, description="Longest silence inside an answer.")
    attempts_max: int = Field(3, ge=1, le=20, description="Most providers tried for one call.")
    router_calls_max: int = Field(2000, ge=1, le=100_000, description="Calls that one router runs at once.")
    unsettled_max: int = Field(
        20_000, ge=1, le=10_000_000, description="Outcomes not settled yet above which a router takes no new call."
    )
    tokenizer_at_start: bool = Field(
        default=False,
        description="Read the tokenizer before the first call: 63 MB more for each router. Else the first answer whose"
        " usage is counted, e.g. because its client left, stops all streams of its router for half a second, once.",
    )
    data_dir: Path = Field(Path(".hub"), description="Folder for everything that is kept on disk.")
    spool_dir: Path | None = Field(None, description="Outcomes while the bus is away; default <data dir>/spool.")

    @property
    def spool(self) -> Path:
        """Where outcomes wait for the bus."""
        return self.data_dir / "spool" if self.spool_dir is None else self.spool_dir

    @field_validator("openai_base_url", "anthropic_base_url")
    @classmethod
    def _url(cls, url: str | None, info: ValidationInfo) -> str | None:
        return None if url is None else _not_in_clear(checked_base_url(url), info)

    @field_validator("openai_api_key", "anthropic_api_key")
    @classmethod
    def _key(cls, key: SecretStr | None) -> SecretStr | None:
        return _checked_key(key)

    @field_validator("providers")
    @classmethod
    def _named(cls, providers: dict[str, ProviderSettings], info: ValidationInfo) -> dict[str, ProviderSettings]:
        lowered = {name.lower(): provider for name, provider in providers.items()}
        for name, provider in lowered.items():
            if _NAME.fullmatch(name) is None:
                raise ValueError("a provider's name is a letter or digit, then at most 39 of a-z 0-9 _ -")
            if name == DEMO:
                raise ValueError("the name demo belongs to the built-in provider; HUB_DEMO_PROVIDER=off removes it")
            if provider.base_url is None and name not in {"openai", "anthropic"}:
                raise ValueError(f"HUB_PROVIDERS__{name.upper()}__BASE_URL is missing")
            if provider.base_url is not None:
                _not_in_clear(provider.base_url, info)
        return lowered


def checked_base_url(url: str) -> str:
    """A base URL without trailing slash.

    Raises:
        ValueError: not http(s), no host, or with user, query or fragment; the text does not repeat the URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("a base URL begins with http:// or https:// and names a host")
    if "@" in parts.netloc:
        raise ValueError("a base URL carries no user or password; the key has its own setting")
    if "?" in url or "#" in url:
        raise ValueError("a base URL has no query and no fragment")
    if _MODEL.fullmatch(url.rstrip("/")) is None:
        raise ValueError("a base URL has at most 200 printable ASCII characters and no space")
    if parts.port == 0:  # reading the port also refuses one that is no number
        raise ValueError("a base URL's port is between 1 and 65535")
    return url.rstrip("/")


def _checked_key(key: SecretStr | None) -> SecretStr | None:
    if key is not None and _CREDENTIAL.fullmatch(key.get_secret_value()) is None:
        raise ValueError("a key has only printable ASCII characters and no space")
    return key


def _not_in_clear(url: str, info: ValidationInfo) -> str:
    if not info.data.get("allow_plain_http") and not _is_private(url):
        raise ValueError("a base URL with http:// must be on loopback, unless HUB_ALLOW_PLAIN_HTTP=true")
    return url


def _is_private(url: str) -> bool:
    """Whether nobody else can read what goes to this URL: TLS, or our own machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
