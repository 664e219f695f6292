"""How much of a call's hold its running answer has used, and what more must be held."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from contracts.dispatch import DispatchHeader
from contracts.money import ZERO
from contracts.usage import Candidate, Usage

USED_BEFORE_EXTENDING: Final = 0.7
_BYTES_PER_TOKEN_MIN: Final = 3
_BETWEEN_EVENTS: Final = b"\n\ndata: "
"""Longer than need be: a search for two bytes takes twice the time."""
_INPUT: Final = ("input", "cache_write", "cache_write_1h", "cache_read")
_OUTPUT: Final = ("output", "reasoning")


@dataclass(slots=True)
class HoldMeter:
    """Estimates output tokens from the bytes of a stream: one per event, and one per three bytes of its text.

    What an event costs without text is learnt from the smallest one. The estimate errs upwards; the reported usage
    decides at the end, and `missing` says what the hold lacks then.
    """

    input_tokens: int
    output_tokens: int
    slice_tokens: int
    candidates: Sequence[Candidate]
    """Their dearest rates count; looked at only when the hold does not suffice."""
    events: int = 0
    relayed_bytes: int = 0
    smallest: int = 1 << 30
    asking: bool = False
    left: int = 0
    """Thirds of a token until the hold has to be looked at again."""

    def relayed(self, block: bytes) -> Decimal:
        """Count one block of whole events.

        Returns:
            Credits to ask for now; zero while the hold suffices, nothing costs anything, or a question is open.
        """
        size, count = len(block), block.count(_BETWEEN_EVENTS) + 1
        self.events += count
        self.relayed_bytes += size
        if size < self.smallest * count:
            self.smallest = size // count
            self.left = 0  # more of the bytes before were text than it seemed
        else:
            self.left -= size - count * (self.smallest - _BYTES_PER_TOKEN_MIN)
        return ZERO if self.left > 0 or self.asking else self._wanted()

    def _wanted(self) -> Decimal:
        text = self.relayed_bytes - self.events * self.smallest
        events_left = int(self.output_tokens * USED_BEFORE_EXTENDING) - self.events
        self.left = events_left * _BYTES_PER_TOKEN_MIN - max(0, text)
        if self.left > 0:
            return ZERO
        return self.slice_tokens * dearest(self.candidates, _OUTPUT, self.input_tokens)

    def granted(self) -> None:
        """One more slice is held."""
        self.output_tokens += self.slice_tokens

    def missing(self, usage: Usage) -> Decimal:
        """Credits by which the hold is too small for this usage; an upper bound, zero in the ordinary case.

        A prompt that is longer than was foreseen can reach a dearer tier: then that price is due for what is held, too.
        """
        output = usage.output_tokens + usage.reasoning_tokens - self.output_tokens
        prompt = usage.prompt_tokens
        taken = prompt - self.input_tokens
        if output <= 0 and taken <= 0:
            return ZERO
        longest = max(prompt, self.input_tokens)
        input_rate, output_rate = (dearest(self.candidates, units, longest) for units in (_INPUT, _OUTPUT))
        more = max(0, output) * output_rate + max(0, taken) * input_rate
        if taken > 0:
            more += self.input_tokens * (input_rate - dearest(self.candidates, _INPUT, self.input_tokens))
            more += self.output_tokens * (output_rate - dearest(self.candidates, _OUTPUT, self.input_tokens))
        return more


def meter(header: DispatchHeader) -> HoldMeter:
    """The meter of a call: the tokens that its hold covers, and its candidates."""
    return HoldMeter(
        input_tokens=header.hold_input_tokens,
        output_tokens=header.hold_output_tokens,
        slice_tokens=max(header.hold_output_tokens, 1),
        candidates=header.candidates,
    )


def dearest(candidates: Sequence[Candidate], units: tuple[str, ...], prompt_tokens: int) -> Decimal:
    """The highest of these unit rates over all candidates, tiers that a prompt of this length reaches included."""
    texts = [
        getattr(rates, unit)
        for candidate in candidates
        for rates in (candidate.rates, *(tier for tier in candidate.rates.tiers if prompt_tokens > tier.above))
        for unit in units
    ]
    return max((Decimal(text) for text in texts if text is not None), default=ZERO)
