"""Facts that came again and again without an answer: each may be what killed those who took it.

They are settled by a process of their own. If that dies of one, this one is parked, and the others go on.

Source: settle protocol, crash row 22.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from contracts.rpc.metering import SettledCall
from metering.alone import WITH_OUTBOX, Progress, Question
from metering.settle import Announcer, Unsettled, quietly
from metering.usage_events import UsageEvents

_log = structlog.get_logger("quarantine")
_ENCODE: Final = msgspec.json.Encoder().encode
_PROGRESS: Final = msgspec.json.Decoder(Progress)
_PATIENCE_S: Final = 60.0
_NONE: Final = "0.0000000000"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A message as it came, not looked into."""

    subject: str
    ack: bytes
    payload: bytes


@dataclass(slots=True)
class Quarantine:
    """Suspects of one process."""

    announcer: Announcer
    usage: UsageEvents
    changed: Callable[[list[str]], None]
    """Told of accounts whose credit is another one."""
    _waiting: list[Suspect] = field(default_factory=list)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, subject: str, ack: bytes, payload: bytes) -> None:
        """One more."""
        self._waiting.append(Suspect(subject, ack, payload))
        self._woken.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                suspects, self._waiting = self._waiting, []
                await self._examine(suspects)

    async def _examine(self, suspects: Sequence[Suspect]) -> None:
        _log.warning("facts came again without an answer: settled by a process of their own", facts=len(suspects))
        said = await settled_alone(suspects, with_outbox=self.announcer.store.with_outbox)
        if not said:  # it did not even start, which is no fact's fault
            for suspect in suspects:
                self.announcer.nak(suspect.ack)
            return
        ended = [progress for progress in said if progress.step not in {"started", "read"}]
        for progress in ended:
            await self._follow(suspects[progress.place], progress, _names(said, progress.place))
        left = suspects[len(ended) :]
        if left:  # the process died of the first of them
            _log.error("a fact killed the process that settled it", subject=left[0].subject)
            await self._park(left[0], "poison", _names(said, len(ended)))
            self._waiting[:0] = left[1:]
        self.usage.catch_up_soon()

    async def _follow(self, suspect: Suspect, progress: Progress, names: Progress) -> None:
        if progress.step == "settled":
            call = SettledCall(names.call_id, progress.state, progress.credits)
            self.announcer.tell(names.gateway, names.router, call)
            quietly(self.announcer.pull.ack, suspect.ack)
            self.changed([names.account])
        elif progress.step == "unavailable":
            self.announcer.nak(suspect.ack)
        else:
            reason, _, detail = progress.detail.partition(": ")
            await self._park(suspect, reason, names, detail)

    async def _park(self, suspect: Suspect, reason: str, names: Progress, detail: str = "") -> None:
        await self.announcer.park([Unsettled(suspect.subject, suspect.ack, suspect.payload, reason, detail)])
        if names.call_id:
            call = SettledCall(names.call_id, "", _NONE, parked=True)
            self.announcer.tell(names.gateway, names.router, call)


def _names(said: Sequence[Progress], place: int) -> Progress:
    """Whom a fact is about and from, if it could be read."""
    return next((one for one in said if one.place == place and one.step == "read"), Progress(place, "read"))


async def settled_alone(suspects: Sequence[Suspect], *, with_outbox: bool) -> list[Progress]:
    """What the process said before it ended; one that says nothing for a minute is killed."""
    command = [sys.executable, "-m", "metering.alone", *([WITH_OUTBOX] if with_outbox else [])]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None  # noqa: S101 - both are pipes
    assert child.stdout is not None  # noqa: S101
    said: list[Progress] = []
    try:
        child.stdin.write(b"".join(_ENCODE(Question(one.subject, one.payload)) + b"\n" for one in suspects))
        await child.stdin.drain()
        child.stdin.close()
        async with asyncio.timeout(_PATIENCE_S) as patience:
            while (line := await child.stdout.readline()).endswith(b"\n"):
                said.append(_PROGRESS.decode(line))
                patience.reschedule(asyncio.get_running_loop().time() + _PATIENCE_S)
    except (TimeoutError, OSError) as error:
        _log.error("the process that settles suspects was lost", error=type(error).__name__)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    return said
