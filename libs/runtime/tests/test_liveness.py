"""The ops port."""

import asyncio
import socket
import urllib.error
import urllib.request

import pytest

from runtime.liveness import ops_port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def get(port: int, path: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def test_readiness_names_what_is_away_and_liveness_does_not_care() -> None:
    parts = {"bus": True, "database": True}

    async def ready() -> dict[str, bool]:
        return parts

    port = free_port()
    async with ops_port("127.0.0.1", port, ready):
        assert await get(port, "/readyz") == (200, "bus: ok\ndatabase: ok\n")
        parts["database"] = False
        assert await get(port, "/readyz") == (503, "bus: ok\ndatabase: away\n")
        assert (await get(port, "/livez"))[0] == 200
        status, metrics = await get(port, "/metrics")
        assert status == 200
        assert "# HELP" in metrics
        assert (await get(port, "/other"))[0] == 404
    with pytest.raises(urllib.error.URLError):
        await get(port, "/livez")


async def test_port_zero_is_no_port() -> None:
    async def ready() -> dict[str, bool]:
        return {}

    async with ops_port("127.0.0.1", 0, ready):
        pass


async def test_taken_port_is_told() -> None:
    async def ready() -> dict[str, bool]:
        return {}

    port = free_port()
    async with ops_port("127.0.0.1", port, ready):
        with pytest.raises(RuntimeError, match=f"{port} cannot be had"):
            async with ops_port("127.0.0.1", port, ready):
                pytest.fail("two processes on one port")
