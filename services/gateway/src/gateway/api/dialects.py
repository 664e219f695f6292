"""Which dialect a request speaks: one function decides before anything else looks at it."""

from typing import Final, Literal

Dialect = Literal["openai"]

CHAT_PATHS: Final = (
    "/api/v2/chat/completions",
    "/api/v2/completions",
    "/v1/chat/completions",
)
"""Paths of the bytes path; the second is the alias that the original has."""


class Dialects:
    """The choice for one mount path."""

    def __init__(self, mount_path: str) -> None:
        self._openai = frozenset((mount_path + path).encode() for path in CHAT_PATHS)

    def choose(self, method: bytes, path: bytes) -> Dialect | None:
        """The dialect of a chat request; None = everything else, which the FastAPI application serves."""
        return "openai" if method == b"POST" and path in self._openai else None
