"""Settings of `hub up`: what the embedded default itself reads; all else goes on to the services."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts import streams
from contracts.streams import StreamSpec


class LocalSettings(BaseModel):
    """What the supervisor can be told; the names in the environment are these with `HUB_` before them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data_dir: Path = Field(
        Path(".hub"), description="Folder for everything that is kept: database, streams, passwords."
    )
    host: str = Field("127.0.0.1", description="Address of the HTTP API.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 = any free one, kept from then on.")
    gateways: int = Field(1, ge=1, le=16, description="Gateways; the second listens on the next port, and so on.")
    routers: int = Field(1, ge=1, le=16, description="Provider-routers.")
    meterings: int = Field(1, ge=1, le=16, description="Metering processes.")
    janitors: int = Field(1, ge=1, le=16, description="Janitors.")
    log_format: Literal["console", "json"] = Field(
        "console", description="`console`: short lines for people; `json`: as the services write."
    )
    drain_s: float = Field(30.0, gt=0, description="Seconds that a stopping service waits for its open calls.")
    answers_kept_s: int = Field(
        streams.ANSWERS_KEPT_S,
        ge=10,
        le=86_400,
        description="Seconds that answers under an Idempotency-Key, and resumable ones, are kept in NATS' memory.",
    )
    answers_kept_bytes: int = Field(
        streams.ANSWERS_KEPT_BYTES,
        ge=2**20,
        le=2**34,
        description="Bytes of all kept answers; the oldest go first. Within NATS' `max_memory_store` (here 512 MB).",
    )
    payment_kit: Literal["none", "demo"] = Field(
        "none", description="`demo`: a Payment Kit for trying things out runs beside the hub and keeps the balances."
    )
    nats_sync_always: bool = Field(default=False, description="NATS forces each message to disk: an fsync a message.")
    db_fast: bool = Field(default=False, description="Tests only: PostgreSQL does not force commits to disk.")

    @property
    def kept_answers(self) -> StreamSpec:
        """The stream of kept answers."""
        return streams.frames(self.answers_kept_s, self.answers_kept_bytes)


def read_settings(environment: Mapping[str, str]) -> LocalSettings:
    """The settings in an environment; empty values count as absent.

    Raises:
        pydantic.ValidationError: a value is wrong.
    """
    names = {name: f"HUB_{name.upper()}" for name in LocalSettings.model_fields}
    return LocalSettings.model_validate(
        {name: environment[variable] for name, variable in names.items() if environment.get(variable)}
    )
