"""Questions to provider-router about providers, models and rates."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from contracts.rpc.envelope import Message

SERVICE: Final = "provider-router"
SNAPSHOT: Final = "catalog_snapshot"
RATES_SET: Final = "rates_set"
RATES_LIST: Final = "rates_list"


def _rate(text: str) -> str:
    from contracts.money import parse  # noqa: PLC0415 - keeps the annotation below readable

    parse(text)
    return text


Rate = Annotated[str, AfterValidator(_rate), Field(max_length=40)]
"""Credits per unit: a plain decimal string, ≥ 0, any number of places."""


class SnapshotGet(Message):
    """Everything that admission needs; no secret in it."""


class ProviderView(Message):
    """A configured provider."""

    name: str
    kind: Literal["openai", "anthropic", "demo"]
    models: tuple[str, ...] | None
    """Models it lists; None = only names with its prefix, whatever the model."""
    weight: int = 100


class RateView(Message):
    """The rates in force for models that match `pattern` (`provider/model`, `*` matches any run of characters)."""

    rate_id: str
    pattern: str
    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    reasoning: Rate | None = None
    request: Rate = "0"
    source: str
    """`operator`, `demo`, or the price package with its version."""
    effective_at: str


class Snapshot(Message):
    """`revision` grows with every change."""

    revision: int
    providers: tuple[ProviderView, ...]
    rates: tuple[RateView, ...]
    """Most specific pattern first: the first that matches counts."""


class RatesSet(Message):
    """A new rate version, in force at once; history is kept."""

    pattern: str = Field(min_length=1, max_length=200)
    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    reasoning: Rate | None = None
    request: Rate = "0"
    changed_by: str = ""


class RatesList(Message):
    """Rates in force; `pattern` filters by substring."""

    pattern: str | None = None


class RatesPage(Message):
    """Rates in force."""

    rates: tuple[RateView, ...]


class CatalogChanged(Message):
    """Published on `catalog.changed`: drop the cache and ask again."""

    revision: int
