"""The protocol between the story of a call and a provider's wire format.

Dialects and adapters meet in one form, OpenAI's chat completions: an adapter turns that form into its provider's
request, and the provider's answer back into bytes of that form, ready for the client.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from contracts.errors import HubError
from contracts.events import Outcome
from contracts.usage import Usage


class Capability(StrEnum):
    """What an adapter claims; the conformance suite has a fixture for each claim."""

    TEXT = "text"
    STREAM = "stream"
    TOOLS = "tools"
    JSON_SCHEMA = "json_schema"
    IMAGE_INPUT = "image_input"
    CACHE = "cache"
    SEVERAL_CHOICES = "several_choices"


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """An HTTP request without address and secret: `signing.py` adds the credential, `upstream.py` sends it."""

    path: str
    """Appended to the provider's base URL, e.g. `/chat/completions`."""
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """A complete answer: what is held back until the call is settled, and what the call used.

    `splice_at` is a position in `held`, directly before the closing brace of the usage object that the client gets;
    None when it gets none.
    """

    held: bytes
    splice_at: int | None
    usage: Usage | None
    """As the provider reported it, bounded and marked; None = it reported none that can be used: the caller counts,
    and `with_usage` puts what it counted into `held`."""
    finish_reason: str
    """The provider's own word."""
    outcome: Outcome


class Translation(Protocol):
    """One streamed answer: provider's bytes in, client's bytes out. Holds back the tail."""

    @property
    def complete(self) -> bool:
        """Whether the provider said everything (`[DONE]`, `message_stop`); nothing more need be read."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return what may go to the client now (empty = nothing yet).

        Raises:
            HubError: an error object in mid-stream, broken SSE or JSON, an answer beyond its bounds.
        """
        ...

    def end(self) -> Ending:
        """The provider has finished or closed the connection.

        Raises:
            HubError: `upstream_broken`, when no finish reason had come or a frame was cut off.
        """
        ...

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """The same ending with `usage` in the client's usage chunk (if it asked for one), and where to splice."""
        ...

    def cut(self, finish_reason: str, details: str = "") -> bytes:
        """A tail that ends the client's stream early but properly, with this finish reason and no usage chunk.

        `details`, if given, becomes `finish_details.type` of each choice: the reason in the hub's own words.
        Give `Ending(cut(reason), None, None, reason, outcome)` to `with_usage` for a tail with a usage chunk.
        """
        ...

    def delivered_text(self) -> str:
        """Text of the answer relayed so far, tool arguments included, for counting."""
        ...

    def reported(self) -> Usage | None:
        """Usage known so far, if the provider reports it before the end."""
        ...


class Adapter(Protocol):
    """One provider's wire format. Pure: no socket, no clock, no secret."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    def request(self, body: bytes, model: str, *, stream: bool) -> UpstreamRequest:
        """The provider's request for a client's body (valid JSON object), `model` being the provider's name of it.

        Raises:
            HubError: `unsupported_feature` for what the provider cannot express; nothing is dropped in silence.
        """
        ...

    def answer(self, body: bytes, *, created: int = 0) -> Ending:
        """A whole JSON answer (status 2xx).

        Args:
            body: as it came.
            created: Unix seconds for the client's `created`, where the provider gives none.

        Raises:
            HubError: `upstream_broken`, when it is not what the provider documents.
        """
        ...

    def answer_text(self, body: bytes) -> str:
        """Text of a whole JSON answer, tool arguments included, for counting."""
        ...

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """A whole answer's ending with its usage object replaced (or added), and where to splice."""
        ...

    def translation(self, *, include_usage: bool, choices: int = 1, created: int = 0) -> Translation:
        """A fresh state for one streamed answer.

        Args:
            include_usage: the client asked for the usage chunk.
            choices: how many answers the client asked for (`n`); with one, everything
                from the first finish reason on is held back, with several only the usage chunk and `[DONE]`.
            created: Unix seconds for the client's `created`, where the provider gives none.
        """
        ...

    def error(self, status: int, headers: dict[str, str], body: bytes) -> HubError:
        """An answer with an error status: the provider's code, type, words and `Retry-After`, without secrets."""
        ...
