"""A client with a journal: what each call was told, independent of everything the hub remembers."""

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

MODEL: Final = "fake/gpt-4o-mini"
PATIENCE_S: Final = 30.0
"""After this long without a byte a call counts as hung."""


@dataclass(slots=True)
class Told:
    """What one request was told. Only ever grows."""

    request_id: str
    stream: bool
    status: int = 0
    """0 = no answer began."""
    call_id: str = ""
    replayed: bool = False
    """The answer is that of an earlier request with the same Idempotency-Key."""
    lines: list[str] = field(default_factory=list)
    """Of a stream, as they came."""
    text: str = ""
    final: bool = False
    """The client takes it for complete: a whole JSON answer, or `[DONE]`."""
    usage: dict[str, Any] | None = None
    error: str = ""
    """Code of an error answer or of a stream's error event."""
    retry_after: str | None = None
    broken: bool = False
    """The connection ended before the answer did."""
    hung: bool = False
    left: bool = False
    """The client hung up itself."""
    seconds: float = 0.0
    """From the request to the answer's end, whatever end that was."""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    """The first text has come."""

    @property
    def credits(self) -> str | None:
        """Charged, as the answer said."""
        return None if self.usage is None else self.usage.get("credits")


class Payer:
    """One account's key, and a client that uses it."""

    def __init__(self, urls: list[str], account: str, key: str, key_id: str) -> None:
        self.account = account
        self.key = key
        self.key_id = key_id
        self.journal: list[Told] = []
        """Every request, in order."""
        self._urls = urls
        self._running: dict[str, asyncio.Task[None]] = {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S, limits=limits, trust_env=False
        )

    def begin(
        self,
        *,
        stream: bool = False,
        gateway: int = 0,
        text: str = "Say hello.",
        headers: Mapping[str, str] | None = None,
        **fields: object,
    ) -> Told:
        """Send a chat request and go on; `ended` waits for it."""
        told = Told(uuid.uuid4().hex, stream)
        self.journal.append(told)
        options = {"stream_options": {"include_usage": True}} if stream else {}
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream, **options, **fields}
        work = self._chat(told, f"{self._urls[gateway]}/api/v2/chat/completions", body, headers or {})
        self._running[told.request_id] = asyncio.create_task(work)
        return told

    async def chat(self, *, stream: bool = False, gateway: int = 0, **fields: Any) -> Told:
        """Send a chat request and wait for its end."""
        return await self.ended(self.begin(stream=stream, gateway=gateway, **fields))

    async def ended(self, told: Told) -> Told:
        """Wait for a request's end."""
        await self._running[told.request_id]
        return told

    async def leave(self, told: Told) -> None:
        """Hang up."""
        task = self._running[told.request_id]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def get(self, path: str, *, gateway: int = 0, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Any other question."""
        return await self._client.get(f"{self._urls[gateway]}{path}", headers=headers)

    async def close(self) -> None:
        """Hang up everything."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._client.aclose()

    async def _chat(self, told: Told, url: str, body: dict[str, object], headers: Mapping[str, str]) -> None:
        started = time.monotonic()
        try:
            async with self._client.stream(
                "POST", url, json=body, headers={**headers, "x-request-id": told.request_id}
            ) as response:
                told.status = response.status_code
                told.call_id = response.headers.get("x-call-id", "")
                told.replayed = response.headers.get("idempotent-replayed") == "true"
                told.retry_after = response.headers.get("retry-after")
                if response.status_code == 200 and told.stream:
                    await _read_events(response, told)
                else:
                    _read_whole(await response.aread(), told)
        except httpx2.TimeoutException:
            told.hung = True
        except httpx2.TransportError:
            told.broken = True
        except asyncio.CancelledError:
            told.left = True
            raise
        finally:
            told.seconds = time.monotonic() - started


def _read_whole(body: bytes, told: Told) -> None:
    answer = json.loads(body)
    if told.status == 200:
        told.text = answer["choices"][0]["message"]["content"]
        told.usage = answer["usage"]
        told.final = True
    else:
        told.error = answer["error"]["code"]


async def _read_events(response: httpx2.Response, told: Told) -> None:
    async for line in response.aiter_lines():
        told.lines.append(line)
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            told.final = True
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            told.error = event["error"]["code"]
            continue
        told.usage = event.get("usage") or told.usage
        for choice in event["choices"]:
            told.text += choice["delta"].get("content") or ""
        if told.text:
            told.began.set()
    told.broken = not (told.final or told.error)
