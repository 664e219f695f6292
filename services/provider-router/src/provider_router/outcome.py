"""Facts out: a call's outcome is published until metering says that it is settled.

Nothing waits for one PubAck after another: the settled notice is the stronger word. A sweep twice a second publishes
again, under the same message id, what was not settled within two seconds, asks metering for outcomes whose notice
may have been lost, and writes what is still open to a spool file, fsynced, so that it outlives this process. While
metering says nothing at all, it is repeated ever more rarely; the first word from there makes it soon again.
"""

import asyncio
import fcntl
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import events, subjects
from contracts.errors import HubError
from contracts.rpc import metering, model_calls
from runtime import failpoints
from runtime.bus import Bus, header_block
from runtime.rpc import ask

_log = structlog.get_logger("outcome")
_ENCODER: Final = msgspec.json.Encoder()
_SETTLED: Final = msgspec.json.Decoder(metering.SettledBatch)
SWEEP_S: Final = 0.5
REPEAT_AFTER_S: Final = 2.0
REPEAT_AFTER_MAX_S: Final = 30.0
"""Longest wait between two repeats while nobody answers."""
_ASK_MAX: Final = 500


class Spooled(msgspec.Struct):
    """One line of a spool file."""

    call_id: str
    epoch: int
    subject: str
    message_id: str
    payload: str


@dataclass(slots=True)
class _Open:
    epoch: int
    subject: str
    message_id: str
    payload: bytes
    published_at: float
    spooled: bool = False


@dataclass(slots=True)
class Outcomes:
    """Outcomes of this process that are not settled yet."""

    bus: Bus
    process: str
    spool_dir: Path
    clock: Callable[[], float] = time.monotonic
    open: dict[str, _Open] = field(default_factory=dict)
    _wait_s: float = REPEAT_AFTER_S
    """How long to wait if the next repeat remains without an answer."""
    _repeat_at: float = 0.0
    """By the clock: nothing is repeated before, unless metering is heard."""
    _spool: BinaryIO | None = None

    async def start(self) -> None:
        """Listen for settled notices and take over the spools of dead processes."""
        self.bus.after_reconnect(self.heard)
        await self.bus.listen(subjects.inbox_settled("provider-router", self.process), self._on_settled)
        self.spool_dir.mkdir(parents=True, exist_ok=True)
        for spooled in await asyncio.to_thread(self._adopt):
            payload = spooled.payload.encode()
            self._publish(spooled.call_id, _Open(spooled.epoch, spooled.subject, spooled.message_id, payload, 0.0))

    def completed(self, fact: events.CallCompleted) -> None:
        """Publish a completion; it is repeated until settled."""
        self._fact(subjects.calls_completed(subjects.CallKind(fact.kind)), fact)

    def failed(self, fact: events.CallFailed) -> None:
        """Publish a failure; it is repeated until settled."""
        self._fact(subjects.calls_failed(subjects.CallKind(fact.kind)), fact)

    def live(self) -> list[tuple[str, int]]:
        """Calls whose lease must be kept although their answer has ended: (call id, epoch)."""
        return [(call_id, entry.epoch) for call_id, entry in self.open.items()]

    def heard(self) -> None:
        """Metering is there, or the bus is again: what is open is repeated soon."""
        self._wait_s = REPEAT_AFTER_S
        self._repeat_at = 0.0

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Repeat, ask about and spool what has been open for too long."""
        now = self.clock()
        late = {call_id: entry for call_id, entry in self.open.items() if now - entry.published_at > REPEAT_AFTER_S}
        if not late:
            return
        unspooled = [(call_id, entry) for call_id, entry in late.items() if not entry.spooled]
        if unspooled:
            await asyncio.to_thread(self._write_spool, unspooled)
        if now < self._repeat_at:
            return
        _log.warning("outcomes not settled yet", count=len(late), bus=self.bus.is_connected)
        self._repeat_at = now + self._wait_s * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._wait_s = min(2 * self._wait_s, REPEAT_AFTER_MAX_S)
        await self._ask_outcomes(list(late))
        for call_id, entry in late.items():
            if call_id in self.open:
                self._publish(call_id, entry)

    async def drain(self, within_s: float) -> None:
        """Wait until everything is settled; what is not by then lies in the spool."""
        until = time.monotonic() + within_s
        while self.open and time.monotonic() < until:  # noqa: ASYNC110 - many events, one condition
            await asyncio.sleep(0.02)
        unspooled = [(call_id, entry) for call_id, entry in self.open.items() if not entry.spooled]
        if unspooled:
            await asyncio.to_thread(self._write_spool, unspooled)
        if self._spool is not None and not self.open:
            self._remove_spool()

    def _fact(self, subject: str, fact: events.CallCompleted | events.CallFailed) -> None:
        failpoints.hit("provider_router.before_publish")
        message_id = events.completed_message_id(fact.call_id, fact.epoch)
        self._publish(fact.call_id, _Open(fact.epoch, subject, message_id, _ENCODER.encode(fact), 0.0))
        failpoints.hit_written("provider_router.after_publish")

    def _publish(self, call_id: str, entry: _Open) -> None:
        entry.published_at = self.clock()
        self.open[call_id] = entry
        try:
            self.bus.send(entry.subject, entry.payload, headers=header_block(Nats_Msg_Id=entry.message_id))
        except NatsError as error:
            _log.warning("outcome not sent, will be repeated", call_id=call_id, error=type(error).__name__)

    def _on_settled(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        for call in _SETTLED.decode(payload).calls:
            self.open.pop(call.call_id, None)
        self.heard()
        self._empty_spool()

    async def _ask_outcomes(self, call_ids: list[str]) -> None:
        """A notice that was lost is not sent again by the duplicate that JetStream swallows: so ask."""
        for start in range(0, len(call_ids), _ASK_MAX):
            request = model_calls.CallOutcomes(call_ids=tuple(call_ids[start : start + _ASK_MAX]))
            try:
                reply = await ask(
                    self.bus, metering.SERVICE, model_calls.CALL_OUTCOMES, request, model_calls.CallOutcomesReply, 2.0
                )
            except HubError as error:
                _log.warning("outcomes unknown", error=error.code)
                return
            self.heard()
            for call in reply.calls:
                if call.state != events.CallState.PROCESSING:
                    self.open.pop(call.call_id, None)
        self._empty_spool()

    def _empty_spool(self) -> None:
        if not self.open and self._spool is not None:
            os.ftruncate(self._spool.fileno(), 0)
            self._spool.seek(0)

    def _write_spool(self, entries: list[tuple[str, _Open]]) -> None:
        if self._spool is None:
            self._spool = (self.spool_dir / f"{self.process}.jsonl").open("ab")
            fcntl.flock(self._spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for call_id, entry in entries:
            line = Spooled(call_id, entry.epoch, entry.subject, entry.message_id, entry.payload.decode())
            self._spool.write(_ENCODER.encode(line) + b"\n")
            entry.spooled = True
        self._spool.flush()
        os.fsync(self._spool.fileno())

    def _remove_spool(self) -> None:
        if self._spool is not None:
            Path(self._spool.name).unlink(missing_ok=True)
            self._spool.close()
            self._spool = None

    def _adopt(self) -> list[Spooled]:
        """Read and take over spool files that no living process holds."""
        found: list[Spooled] = []
        for path in sorted(self.spool_dir.glob("*.jsonl")):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                lines = file.read().splitlines()
                entries = [entry for entry in map(_spooled, lines) if entry is not None]
                opens = [(e.call_id, _Open(e.epoch, e.subject, e.message_id, e.payload.encode(), 0.0)) for e in entries]
                if opens:
                    self._write_spool(opens)
                path.unlink()
            found.extend(entries)
            _log.info("spool adopted", file=path.name, outcomes=len(entries))
        return found


def _spooled(line: bytes) -> Spooled | None:
    """A line of a spool; None for the last one, when its write was cut off."""
    try:
        return msgspec.json.decode(line, type=Spooled)
    except msgspec.DecodeError:
        return None
