"""The bus as the checks see it: what its streams have, from when on they have it, and what is acknowledged."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from contracts import streams
from runtime.bus import Bus
from runtime.stream_pages import Stored, StreamReadError, pages

_DECODE: Final = msgspec.json.Decoder(dict[str, Any]).decode
_ASK_S: Final = 5.0
_CLOCKS_DIFFER: Final = timedelta(minutes=1)
"""By how much the clocks of NATS and PostgreSQL may differ without a false alarm."""
_BACKLOG: Final = timedelta(hours=1)
"""By how much messages may have been stored before or after their call was settled, where old ones are dropped."""


@dataclass(frozen=True, slots=True)
class StreamSpan:
    """What a stream has."""

    first: int
    last: int
    complete_from: datetime
    """Whatever was settled since then has its message here, unless it was lost."""


@dataclass(frozen=True, slots=True)
class BusView:
    """Reads the streams of facts and of usage events."""

    bus: Bus
    inbox: str

    async def facts_span(self) -> StreamSpan:
        """Of CALLS. A stream that was made anew has no older facts: the books do not need them any more."""
        return await self._span(streams.CALLS, since_made=True)

    async def usage_span(self) -> StreamSpan:
        """Of USAGE. One that was made anew is filled again from the books, so older events are missed too."""
        return await self._span(streams.USAGE, since_made=False)

    async def settled_up_to(self) -> int:
        """Every fact up to this sequence has been acknowledged: its effect was committed before."""
        info = await self._info(f"CONSUMER.INFO.{streams.SETTLE.stream}.{streams.SETTLE.durable}")
        return int(info["ack_floor"]["stream_seq"])

    def facts(self, since: datetime | None) -> AsyncIterator[list[Stored]]:
        """Messages of CALLS, requests too."""
        return pages(self.bus, self.inbox, streams.CALLS.name, None if since is None else since - _CLOCKS_DIFFER)

    def usage_events(self, since: datetime | None) -> AsyncIterator[list[Stored]]:
        """Messages of USAGE."""
        return pages(self.bus, self.inbox, streams.USAGE.name, None if since is None else since - _CLOCKS_DIFFER)

    async def _span(self, spec: streams.StreamSpec, *, since_made: bool) -> StreamSpan:
        info = await self._info(f"STREAM.INFO.{spec.name}")
        state = info["state"]
        now = _time(info["ts"])
        complete_from = now - timedelta(seconds=spec.max_age_s) + _BACKLOG
        if since_made:
            complete_from = max(complete_from, _time(info["created"]) + _CLOCKS_DIFFER)
        if state["first_seq"] > 1 and state["messages"]:  # older ones were dropped
            complete_from = max(complete_from, _time(state["first_ts"]) + _BACKLOG)
        elif state["first_seq"] > 1:
            complete_from = now
        return StreamSpan(state["first_seq"], state["last_seq"], complete_from)

    async def _info(self, what: str) -> dict[str, Any]:
        answer = await self.bus.call(f"$JS.API.{what}", b"", _ASK_S)
        info: dict[str, Any] = _DECODE(answer)
        if "error" in info:
            raise StreamReadError(f"{what}: {info['error'].get('description', 'refused')}")
        return info


def _time(text: str) -> datetime:
    """A time as NATS writes it, with up to nine digits behind the second."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}").replace(tzinfo=UTC)
