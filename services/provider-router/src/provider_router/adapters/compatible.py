"""OpenAI's chat completions, spoken by OpenAI and by everybody compatible: bytes pass untouched."""

from collections.abc import Iterable
from typing import Final

import msgspec

from contracts.errors import ErrorCode, HubError
from contracts.usage import Usage, UsageSource
from provider_router import json_body
from provider_router.adapters import chat_form, errors
from provider_router.adapters.adapter import Capability, Ending, UpstreamRequest
from provider_router.adapters.compatible_stream import CompatibleTranslation, Finish, words

_PATH: Final = "/chat/completions"
_NOTHING: Final = (b"", b"null")


class _Answer(msgspec.Struct):
    choices: list[Finish] = []
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class CompatibleAdapter:
    """Any provider that speaks OpenAI's chat completions.

    Args:
        name: the kind under which it is registered.
        capabilities: what it claims; of real providers everything, since what one cannot do it says itself.
    """

    def __init__(self, name: str = "openai", capabilities: Iterable[Capability] = Capability) -> None:
        self._name = name
        self._capabilities = frozenset(capabilities)

    @property
    def name(self) -> str:
        """The kind under which it is registered."""
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it claims."""
        return self._capabilities

    def request(self, body: bytes, model: str, *, stream: bool) -> UpstreamRequest:
        """The client's body with the provider's name of the model; a stream always asks for usage.

        Raises:
            HubError: the body is no JSON object.
        """
        try:
            return UpstreamRequest(_PATH, json_body.with_model(body, model, include_usage=stream))
        except json_body.JsonBodyError as error:
            raise HubError(ErrorCode.INVALID_JSON, "The body is not a JSON object.") from error

    def answer(self, body: bytes, *, created: int = 0) -> Ending:  # noqa: ARG002 - the provider gives its own
        """A whole answer, byte for byte; `splice_at` is None when it has no usable usage (see `with_usage`).

        Raises:
            HubError: `upstream_broken`, when it is no chat completion.
        """
        try:
            if not body.isascii():
                body.decode()
            answer = _ANSWER.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise errors.broken("The provider's answer is not the JSON of a chat completion") from error
        if bytes(answer.error) not in _NOTHING:
            raise errors.broken("The provider answered with an error", words(answer.error))
        if not answer.choices:
            raise errors.broken("The provider's answer has no choices")
        reason = answer.choices[0].finish_reason or ""
        raw = bytes(answer.usage)
        usage = chat_form.read_usage(raw)
        ending = Ending(body, None, usage, reason, chat_form.outcome(reason))
        if usage is None:
            return ending
        splice_at = json_body.closing_brace(body, raw)
        if splice_at is None:
            body, splice_at = json_body.with_object(body, "usage", raw)
        elif usage.source is UsageSource.ESTIMATED:
            return self.with_usage(ending, usage)
        return Ending(body, splice_at, usage, reason, ending.outcome)

    def answer_text(self, body: bytes) -> str:
        """Text of a whole answer, for counting."""
        return chat_form.answer_text(body)

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """The answer with this usage object in place of the provider's, as the last member."""
        return chat_form.answer_with_usage(ending, usage)

    def translation(
        self,
        *,
        include_usage: bool,
        choices: int = 1,
        created: int = 0,  # noqa: ARG002 - the provider gives its own
    ) -> CompatibleTranslation:
        """A fresh state for one stream."""
        return CompatibleTranslation(include_usage=include_usage, choices=choices)

    def error(self, status: int, headers: dict[str, str], body: bytes) -> HubError:
        """The error that an answer with an error status stands for."""
        return errors.answer_error(status, headers, body)
