"""What a call used and what each unit costs: counts that never overlap, so their prices simply add up."""

from enum import StrEnum
from typing import Final

import msgspec

TOKENS_MAX: Final = 1_000_000_000
"""A count above this is not believed: it is bounded and the usage is marked `estimated`."""


class UsageSource(StrEnum):
    """Where the counts come from."""

    REPORTED = "reported"
    """The provider said so."""
    COUNTED = "counted"
    """Counted by a tokenizer over what was sent and delivered, because the provider sent no usable usage."""
    ESTIMATED = "estimated"
    """The provider's figures were out of bounds and have been bounded."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one call. Parts never overlap: `input_tokens` excludes cached ones, `output_tokens` reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = UsageSource.REPORTED

    @property
    def total_tokens(self) -> int:
        """All tokens of the call."""
        return (
            self.input_tokens
            + self.output_tokens
            + self.cache_read_tokens
            + self.cache_write_tokens
            + self.reasoning_tokens
        )


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Credits per unit, as decimal strings with any number of places; zero is a price.

    An absent cache rate falls back to the input rate, an absent reasoning rate to the output rate.
    """

    input: str = "0"
    output: str = "0"
    cache_read: str | None = None
    cache_write: str | None = None
    reasoning: str | None = None
    request: str = "0"


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to serve a call, with the rates frozen when the call was admitted."""

    provider: str
    model: str
    """The provider's own name of the model."""
    rates: Rates
    rate_id: str = ""
    """The rate version these rates were copied from; empty while billing is off."""
