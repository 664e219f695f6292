"""Settings of a service: read once in `__main__` from the environment, passed on as values."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every service needs. All names begin with `HUB_`; `__` descends into groups."""

    model_config = SettingsConfigDict(
        env_prefix="HUB_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    nats_url: SecretStr = Field(description="NATS server with user and password, e.g. nats://user:password@host:4222.")
    ops_host: str = Field("127.0.0.1", description="Address of the ops port (/livez, /readyz, /metrics).")
    ops_port: int = Field(0, ge=0, le=65535, description="Ops port; 0 = none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object per line, or coloured text.")
    drain_s: float = Field(30.0, gt=0, description="Seconds that a stopping service waits for its open calls.")
    billing: Literal["credit", "off"] = Field("credit", description="`off`: calls are recorded, nothing is charged.")
    fail: str = Field("", description="Failpoints for crash tests, e.g. metering.after_commit:kill; empty = inert.")


def checked_link(link: str | None) -> str | None:
    """The setting of a link that users are told; empty means none.

    Raises:
        ValueError: it is neither an http or https URL nor a path.
    """
    if not link:
        return None
    is_path = link.startswith("/") and not link.startswith("//")
    if not (is_path or link.startswith(("https://", "http://"))) or not link.isascii() or not link.isprintable():
        raise ValueError("a payment link is an http or https URL, or a path, in printable ASCII")
    return link


class DatabaseSettings(ServiceSettings):
    """A service that owns a schema."""

    database_url: SecretStr = Field(description="PostgreSQL with this service's role, e.g. postgresql://u:p@host/hub.")
    database_pool: int = Field(4, gt=0, le=64, description="Most connections of one process.")
