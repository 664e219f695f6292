"""The ops port of a process: /livez, /readyz, /metrics on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from prometheus_client import make_asgi_app

Ready = Callable[[], Awaitable[dict[str, bool]]]
"""Names of what the service needs, and whether each answers now."""


def ops_app(ready: Ready) -> Any:
    """The ASGI application behind the ops port."""
    metrics = make_asgi_app()

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/metrics":
            await metrics(scope, receive, send)
        elif path == "/livez":
            await _text(send, 200, "ok\n")
        elif path == "/readyz":
            parts = await ready()
            lines = "".join(f"{name}: {'ok' if ok else 'away'}\n" for name, ok in sorted(parts.items()))
            await _text(send, 200 if all(parts.values()) else 503, lines or "ok\n")
        else:
            await _text(send, 404, "not found\n")

    return app


async def _text(send: Any, status: int, body: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


@asynccontextmanager
async def ops_port(host: str, port: int, ready: Ready) -> AsyncIterator[None]:
    """Serve the ops port while the block runs; port 0 = no ops port.

    Raises:
        RuntimeError: the port is taken, or the address is not ours.
    """
    if port == 0:
        yield
        return
    config = uvicorn.Config(ops_app(ready), host=host, port=port, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listening = _listening(host, port)  # ours, because uvicorn ends the process when it cannot have the port
    task = asyncio.create_task(server._serve([listening]))  # noqa: SLF001 - serve() would take the process' signals
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RuntimeError(f"the ops port {host}:{port} cannot be had: {error.strerror}") from error
