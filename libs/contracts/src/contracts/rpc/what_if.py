"""A question to metering before rates change: what would past calls have cost?"""

from typing import Annotated, Final

from pydantic import Field

from contracts.money import Credits
from contracts.rpc.catalog import Values
from contracts.rpc.envelope import Message
from contracts.rpc.rate_changes import Pattern

WHAT_IF: Final = "what_if"
CALLS_MAX: Final = 100_000
"""Most calls that are looked at, the newest; matching ones or not."""


class WhatIf(Message):
    """Price the successful calls of the last days, of models that match a pattern, with other rates."""

    pattern: Pattern
    rates: Values
    days: Annotated[int, Field(ge=1, le=366)] = 30


class WhatIfReply(Message):
    """Nothing was changed."""

    calls: int
    """Calls whose model matches."""
    cost: Credits
    """What they cost by the rates that were frozen with them."""
    would_cost: Credits
    complete: bool
    """False: there were more calls than are looked at, and the oldest are missing."""
