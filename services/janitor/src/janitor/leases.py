"""Who runs a duty: a lease in the bucket `DUTY_LEASES`, written by compare-and-set.

Nobody compares clocks. A holder writes its entry again before each run; who finds the same revision there for longer
than the entry's own lease, by its own monotonic clock, may replace it, and of several that try the bucket lets one win.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

Bucket = Callable[[], Awaitable[KeyValue]]
"""Looked up each time: the bucket may be made, or made again, while we run."""


class Entry(msgspec.Struct, frozen=True):
    """What lies in the bucket under a duty's name."""

    holder: str
    """A process id."""
    lease_s: float
    """The holder's own promise: it writes again within this time, or is gone."""


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Entry)


class DutyLease:
    """One janitor's claim to one duty."""

    def __init__(self, bucket: Bucket, duty: str, holder: str, lease_s: float, monotonic: Callable[[], float]) -> None:
        self._bucket = bucket
        self._duty = duty
        self._value = _ENCODER.encode(Entry(holder, lease_s))
        self._holder = holder
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._revision = 0
        self._since = 0.0

    async def hold(self) -> bool:
        """Take or keep the lease.

        Returns:
            Whether the duty is ours for the next `lease_s` seconds.

        Raises:
            nats.errors.Error, TimeoutError: the bucket does not answer; nothing is known.
        """
        bucket = await self._bucket()
        asked_at = self._monotonic()
        try:
            found = await bucket.get(self._duty)
        except KeyNotFoundError:
            return await self._written(bucket.create(self._duty, self._value))
        entry = self._read(found.value)
        revision = found.revision or 0
        if entry.holder != self._holder:
            if revision != self._revision:
                self._revision, self._since = revision, asked_at
                return False
            if asked_at - self._since < entry.lease_s:
                return False
        return await self._written(bucket.update(self._duty, self._value, last=revision))

    async def release(self) -> None:
        """Give the lease up, if it is ours, so that another janitor need not wait.

        Raises:
            nats.errors.Error, TimeoutError: the bucket does not answer; the lease ends by itself.
        """
        bucket = await self._bucket()
        try:
            found = await bucket.get(self._duty)
            if self._read(found.value).holder == self._holder:
                await bucket.delete(self._duty, last=found.revision)
        except (KeyNotFoundError, KeyWrongLastSequenceError):
            return

    def _read(self, value: bytes | None) -> Entry:
        """An entry that cannot be read is nobody's: it is replaced like that of a holder who is gone."""
        try:
            return _DECODER.decode(value or b"")
        except msgspec.DecodeError:
            return Entry("", self._lease_s)

    async def _written(self, write: Awaitable[int]) -> bool:
        try:
            await write
        except KeyWrongLastSequenceError:
            return False
        return True
