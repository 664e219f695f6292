"""What a call used and what each unit costs: counts that never overlap, so their prices simply add up."""

from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from typing import Final

import msgspec

TOKENS_MAX: Final = 1_000_000_000
"""A count above this is not believed: it is bounded and the usage is marked `estimated`."""
PIECES_MAX: Final = 64
"""Most entries of `Usage.pieces` and `Rates.pieces`."""


class UsageSource(StrEnum):
    """Where the counts come from."""

    REPORTED = "reported"
    """The provider said so."""
    COUNTED = "counted"
    """Counted by a tokenizer over what was sent and delivered, because the provider sent no usable usage."""
    ESTIMATED = "estimated"
    """The provider's figures were out of bounds and have been bounded."""


class Unit(StrEnum):
    """What is charged by the piece beside tokens and requests; embeddings are input tokens."""

    IMAGE = "image"
    AUDIO_SECOND = "audio_second"
    CHARACTER = "character"
    VIDEO_SECOND = "video_second"


class RateType(StrEnum):
    """Which calls a rate is for; a model has one for each."""

    CHAT = "chatCompletion"
    IMAGE = "imageGeneration"
    EMBEDDING = "embedding"
    VIDEO = "video"


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that was used or made and is not counted in tokens."""

    unit: str
    """A `Unit`."""
    amount: str
    """How many, a plain decimal string: `2` images, `12.5` seconds."""
    size: str = ""
    """As the vendor names it: `1024x1024`, `720p`."""
    quality: str = ""
    """As the vendor names it: `hd`."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one call used. Parts never overlap: `input_tokens` excludes cached ones, `output_tokens` reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """Written to the provider's cache for its usual time (Anthropic: 5 minutes)."""
    reasoning_tokens: int = 0
    source: UsageSource = UsageSource.REPORTED
    cache_write_1h_tokens: int = 0
    """Written to the provider's cache for an hour."""
    pieces: tuple[Piece, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, whatever a cache read or wrote: it decides about tiers."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens

    @property
    def total_tokens(self) -> int:
        """All tokens of the call."""
        return self.prompt_tokens + self.output_tokens + self.reasoning_tokens


class Tier(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token rates of a call whose prompt is longer than `above`: they count for all of its tokens."""

    above: int
    """Prompt tokens; a prompt of exactly this length is still below."""
    input: str = "0"
    output: str = "0"
    cache_read: str | None = None
    cache_write: str | None = None
    cache_write_1h: str | None = None
    reasoning: str | None = None


class PieceRate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Credits for one piece; without size or quality for all sizes or qualities."""

    unit: str
    rate: str
    size: str = ""
    quality: str = ""


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Credits per unit, as decimal strings with any number of places; zero is a price.

    An absent cache rate falls back to the input rate, an absent rate for an hour's cache to that of the usual one,
    an absent reasoning rate to the output rate.
    """

    input: str = "0"
    output: str = "0"
    cache_read: str | None = None
    cache_write: str | None = None
    reasoning: str | None = None
    request: str = "0"
    cache_write_1h: str | None = None
    tiers: tuple[Tier, ...] = ()
    """Lowest `above` first; of those that a prompt exceeds the last counts, of none the rates above."""
    pieces: tuple[PieceRate, ...] = ()


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to serve a call, with the rates frozen when the call was admitted."""

    provider: str
    model: str
    """The provider's own name of the model."""
    rates: Rates
    rate_id: str = ""
    """The rate version these rates were copied from; empty while billing is off."""


def piece_rate(rates: Iterable[PieceRate], piece: Piece) -> Decimal:
    """Credits for one piece: of the rates for its unit, the one that fits its size and quality best.

    Size and quality together go before size, size before quality, quality before neither. A piece of a size and
    quality that nobody priced costs as the dearest of its unit; a unit without any rate costs nothing.
    """
    dearest = Decimal(0)
    best: tuple[int, Decimal] | None = None
    for rate in rates:
        if rate.unit != piece.unit:
            continue
        price = Decimal(rate.rate)
        dearest = max(dearest, price)
        if rate.size not in {"", piece.size} or rate.quality not in {"", piece.quality}:
            continue
        fit = 2 * bool(rate.size) + bool(rate.quality)
        if best is None or fit > best[0]:
            best = (fit, price)
    return dearest if best is None else best[1]
