"""What can be called and what it costs: the catalog of provider-router, as admission reads it."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from contracts.money import parse
from contracts.rpc import envelope
from contracts.rpc.envelope import Message
from contracts.usage import PIECES_MAX, TOKENS_MAX, PieceRate, Rates, RateType, Tier, Unit

SERVICE: Final = "provider-router"
SNAPSHOT: Final = "catalog_snapshot"
TIERS_MAX: Final = 8
WORDS_MAX: Final = 50
Word = Annotated[str, Field(max_length=40, pattern=envelope.PRINTABLE)]


def _rate(text: str) -> str:
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


class TierValues(Message):
    """Token rates of a call whose prompt is longer than `above` tokens, for all of its tokens."""

    above: int = Field(gt=0, le=TOKENS_MAX)
    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None
    reasoning: Rate | None = None


class PieceValue(Message):
    """The rate of one image, second or character; without size or quality for all of them."""

    unit: Unit
    rate: Rate
    size: str = Field("", max_length=40, pattern=envelope.PRINTABLE)
    quality: str = Field("", max_length=40, pattern=envelope.PRINTABLE)


class Values(Message):
    """What each unit costs; absent ones fall back as `contracts.usage.Rates` has it, zero is a price."""

    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    reasoning: Rate | None = None
    request: Rate = "0"
    cache_write_1h: Rate | None = None
    tiers: tuple[TierValues, ...] = Field((), max_length=TIERS_MAX)
    """Lowest border first."""
    pieces: tuple[PieceValue, ...] = Field((), max_length=PIECES_MAX)


def frozen(rate: Values) -> Rates:
    """The rates as they travel with a call."""
    tiers = tuple(
        Tier(
            tier.above,
            tier.input,
            tier.output,
            tier.cache_read,
            tier.cache_write,
            tier.cache_write_1h,
            tier.reasoning,
        )
        for tier in rate.tiers
    )
    return Rates(
        rate.input,
        rate.output,
        rate.cache_read,
        rate.cache_write,
        rate.reasoning,
        rate.request,
        rate.cache_write_1h,
        tiers,
        tuple(PieceRate(piece.unit, piece.rate, piece.size, piece.quality) for piece in rate.pieces),
    )


class ImageOptions(Message):
    """What pictures a model makes."""

    max: int | None = Field(None, ge=1, le=TOKENS_MAX)
    """At once."""
    quality: tuple[Word, ...] = Field((), max_length=WORDS_MAX)
    size: tuple[Word, ...] = Field((), max_length=WORDS_MAX)
    style: tuple[Word, ...] = Field((), max_length=WORDS_MAX)


class About(Message):
    """What is said about a model beside its price; nothing is decided by it."""

    display: str = Field("", max_length=100, pattern=envelope.WITHOUT_NUL)
    description: str = Field("", max_length=2000, pattern=envelope.WITHOUT_NUL)
    max_tokens: int | None = Field(None, ge=1, le=TOKENS_MAX)
    features: tuple[Literal["tools", "thinking", "vision"], ...] = Field((), max_length=3)
    images: ImageOptions | None = None


class RateView(Values):
    """The rates in force for models that match `pattern` (`provider/model`, `*` matches any run of characters)."""

    rate_id: str
    pattern: str
    source: str
    """`operator`, `demo`, or the price package with its version."""
    effective_at: str
    version: int = 0
    """Of the pattern's rates, growing; 0 = they stand in no row and nobody has changed them."""
    deprecated: bool = False
    """Its models are neither listed nor served."""
    type: RateType = RateType.CHAT
    about: About | None = None


class Snapshot(Message):
    """`revision` grows with every change."""

    revision: int
    providers: tuple[ProviderView, ...]
    rates: tuple[RateView, ...]
    """Of chat calls, most specific pattern first: the first that matches counts."""


class CatalogChanged(Message):
    """Published on `catalog.changed`: drop the cache and ask again."""

    revision: int
