"""What a prompt asks of the fake provider: the prompt itself says how it is answered, so every call has its own."""

import json
from dataclasses import asdict, dataclass

import msgspec
from rig.provider import Received, Reply


@dataclass(frozen=True, slots=True)
class Wish:
    """One answer.

    Attributes:
        pieces: words of the answer, one token each.
        delay_s: pause before each piece of a stream.
        cut_at: the provider breaks the connection before this piece.
        canary: a text that may be found nowhere but in this prompt.
    """

    pieces: int
    delay_s: float = 0.0
    cut_at: int | None = None
    canary: str = ""

    @property
    def prompt(self) -> str:
        """The user's message."""
        return json.dumps(asdict(self))


def granted(received: Received) -> Reply:
    """The reply that a request's last message wishes for."""
    messages = msgspec.json.decode(received.body)["messages"]
    wish = msgspec.json.decode(messages[-1]["content"], type=Wish)
    words = tuple(f" {number}" for number in range(wish.pieces))
    return Reply(pieces=words, piece_delay_s=wish.delay_s, cut_at=wish.cut_at)
