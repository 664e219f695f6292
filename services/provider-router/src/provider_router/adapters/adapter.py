"""The protocol between the story of a call and a provider's wire format.

Dialects and adapters meet in one form, OpenAI's chat completions: an adapter turns that form into its provider's
request, and the provider's answer back into bytes of that form, ready for the client.
"""

from dataclasses import dataclass, field
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
    """As the provider reported it, bounded and marked; None = it reported none that can be used."""
    finish_reason: str
    """The provider's own word."""
    outcome: Outcome


@dataclass(slots=True)
class Delivered:
    """What a stream has delivered so far, for counting when the provider gave no usage."""

    pieces: list[bytes] = field(default_factory=list)
    """Text of the answer (tool arguments included), in order, or whole blocks of it to be parsed later."""
    reported: Usage | None = None
    """Counts that came early (Anthropic's `message_start`)."""


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

    def cut(self, finish_reason: str) -> bytes:
        """A tail that ends the client's stream early but properly, with this finish reason and no usage."""
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

    def answer(self, body: bytes) -> Ending:
        """A whole JSON answer (status 2xx).

        Raises:
            HubError: `upstream_broken`, when it is not what the provider documents.
        """
        ...

    def answer_text(self, body: bytes) -> str:
        """Text of a whole JSON answer, tool arguments included, for counting."""
        ...

    def translation(self, *, include_usage: bool) -> Translation:
        """A fresh state for one streamed answer; `include_usage` = the client asked for the usage chunk."""
        ...

    def error(self, status: int, headers: dict[str, str], body: bytes) -> HubError:
        """An answer with an error status: the provider's code, type, words and `Retry-After`, without secrets."""
        ...
