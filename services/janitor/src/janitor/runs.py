"""When each duty ran last, in the bucket `DUTY_RUNS`: for whoever takes it over, and for `hub status`.

Times are of the janitors' clocks. They decide only how long a duty waits after it was taken over, at most its period:
a time that lies in the future, because clocks differ, makes it due at once.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from contracts.duties import DutyRun

_DECODER: Final = msgspec.json.Decoder(DutyRun)
_ENCODER: Final = msgspec.json.Encoder()
Bucket = Callable[[], Awaitable[KeyValue]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has ended."""

    ended: float
    """Unix time in seconds."""
    result: str
    is_done: bool
    pause_s: float
    """Until the next one."""

    @classmethod
    def now(cls, result: str, is_done: bool, pause_s: float) -> "Run":  # noqa: FBT001 - three facts of one run
        """A run that ends now."""
        return cls(time.time(), result, is_done, pause_s)


@dataclass(frozen=True, slots=True)
class RunsLog:
    """Reads and writes the bucket, which may be made, or made again, while we run."""

    bucket: Bucket
    holder: str
    """This janitor's process id."""

    async def due_in_s(self, duty: str, period_s: float) -> float:
        """Seconds until a duty is due; 0 when nothing is known of its last success.

        Raises:
            nats.errors.Error, TimeoutError: the bucket does not answer.
        """
        try:
            entry = await (await self.bucket()).get(duty)
            last = _DECODER.decode(entry.value or b"")
            ran = datetime.fromisoformat(last.ended_at).timestamp()
        except (KeyNotFoundError, msgspec.DecodeError, ValueError):
            return 0.0
        since_s = time.time() - ran
        if since_s < 0 or last.result != "done":
            return 0.0
        return max(0.0, period_s - since_s)

    async def note(self, duty: str, run: Run) -> None:
        """Write what came of a run.

        Raises:
            nats.errors.Error, TimeoutError: the bucket does not answer.
        """
        ended_ms = int(run.ended * 1000)
        entry = DutyRun(
            result="done" if run.is_done else "failed",
            detail=run.result,
            ended_at=_text(ended_ms),
            next_at=_text(ended_ms + round(run.pause_s * 1000)),
            holder=self.holder,
        )
        await (await self.bucket()).put(duty, _ENCODER.encode(entry))


def _text(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
