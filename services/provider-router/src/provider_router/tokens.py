"""Counting tokens, for providers that report no usage: exact for OpenAI's newer models, an estimate for others."""

from functools import cache
from types import ModuleType
from typing import Any, Final

import msgspec

from provider_router.adapters.chat_form import message_text

_VOCABULARY: Final = "o200k_base"
_PER_MESSAGE: Final = 4
"""Role and separators of one message."""
_PER_REQUEST: Final = 3
"""The beginning of the answer."""
_PER_IMAGE: Final = 85
"""An image of low detail; the least that OpenAI counts."""


def load() -> None:
    """Read the vocabulary now: 0.4 s and 63 MB. A thread would not help, because reading it keeps the interpreter."""
    count_text("a")


@cache
def _toktok() -> ModuleType:
    # Reads its vocabulary at first use, which many processes never need.
    import toktok  # noqa: PLC0415

    return toktok  # type: ignore[no-any-return]


def count_text(text: str) -> int:
    """Tokens of a text."""
    if not text:
        return 0
    return int(_toktok().batch_count([text], _VOCABULARY, threads=1)[0])


def count_request(body: bytes) -> int:
    """Input tokens of a chat request in OpenAI's form (a JSON object): texts, tools, and an overhead per message."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    messages = fields.get("messages")
    texts: list[str] = []
    overhead = _PER_REQUEST
    for message in messages if isinstance(messages, list) else ():
        texts.append(message_text(message))
        overhead += _PER_MESSAGE + _PER_IMAGE * _images(message)
    described = [fields[name] for name in ("tools", "functions", "response_format") if fields.get(name)]
    texts += [msgspec.json.encode(value).decode() for value in described]
    return overhead + count_text("\n".join(texts))


def _images(message: object) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return 0
    return sum(isinstance(part, dict) and part.get("type") == "image_url" for part in content)
