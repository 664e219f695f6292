"""The ASGI application: one function chooses what serves a request before anything else."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT_PATHS: Final = (
    "/api/v2/chat/completions",
    "/api/v2/completions",
    "/v1/chat/completions",
)
"""Paths of the bytes path; the second is the alias that the original has."""


class Front:
    """Chat goes to its bare route, all else to FastAPI.

    Args:
        chat: the chat route.
        rest: the FastAPI application.
        mount_path: prefix of every path, empty = none.
    """

    def __init__(self, chat: Asgi, rest: Asgi, mount_path: str) -> None:
        self._chat = chat
        self._rest = rest
        self._chat_paths = frozenset(mount_path + path for path in CHAT_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._chat_paths:
            await self._chat(scope, receive, send)
        else:
            await self._rest(scope, receive, send)
