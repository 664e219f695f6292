"""Anthropic's Messages API behind the adapter protocol; its base URL ends in `/v1`."""

from contracts.errors import HubError
from contracts.usage import Usage
from provider_router.adapters import chat_form, errors
from provider_router.adapters.adapter import Capability, Ending, UpstreamRequest
from provider_router.adapters.anthropic import answer, request, stream


class AnthropicAdapter:
    """See `Adapter`."""

    @property
    def name(self) -> str:
        """The kind under which it is registered."""
        return "anthropic"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything but several choices."""
        return frozenset(Capability) - {Capability.SEVERAL_CHOICES}

    def request(self, body: bytes, model: str, *, stream: bool) -> UpstreamRequest:
        """See `request.request`."""
        return request.request(body, model, stream=stream)

    def answer(self, body: bytes, *, created: int = 0) -> Ending:
        """See `answer.answer`."""
        return answer.answer(body, created)

    def answer_text(self, body: bytes) -> str:
        """Text of a whole answer, for counting."""
        return chat_form.answer_text(answer.answer(body, 0).held)

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """A whole answer with this usage object."""
        return chat_form.answer_with_usage(ending, usage)

    def translation(
        self,
        *,
        include_usage: bool,
        choices: int = 1,  # noqa: ARG002 - requests for several are refused
        created: int = 0,
    ) -> stream.MessagesTranslation:
        """A fresh state for one stream."""
        return stream.MessagesTranslation(include_usage=include_usage, created=created)

    def error(self, status: int, headers: dict[str, str], body: bytes) -> HubError:
        """The error that an answer with an error status stands for."""
        return errors.answer_error(status, headers, body)
