"""Streams, durable consumers and buckets, as data; `runtime.provision` makes them so."""

from dataclasses import dataclass
from typing import Final, Literal

from contracts import subjects

_DAY_S: Final = 86_400
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A JetStream stream."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: int
    max_bytes: int
    storage: Literal["file", "memory"] = "file"
    duplicate_window_s: int = 600
    """Longer than any outage across which a publisher repeats the same message id."""


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer; `max_deliver` is unlimited: poison is parked in Postgres, never by the bus."""

    stream: str
    durable: str
    filter_subjects: tuple[str, ...]
    ack_wait_s: int = 5
    """Longer than a turn; short, so that facts of a killed process come to another while clients still wait."""
    max_ack_pending: int = 8192


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A key-value bucket."""

    name: str
    ttl_s: int = 0
    """Seconds an entry lives; 0 = for ever."""
    history: int = 1


CALLS: Final = StreamSpec(
    "CALLS",
    (f"{subjects.CALLS_REQUESTED}.*", f"{subjects.CALLS_COMPLETED}.*", f"{subjects.CALLS_FAILED}.*"),
    max_age_s=7 * _DAY_S,
    max_bytes=4 * _GIB,
)
USAGE: Final = StreamSpec("USAGE", (f"{subjects.USAGE_RECORDED}.*",), max_age_s=30 * _DAY_S, max_bytes=16 * _GIB)
ANSWERS_KEPT_S: Final = 600
ANSWERS_KEPT_BYTES: Final = _GIB // 4


def frames(kept_s: int, kept_bytes: int) -> StreamSpec:
    """The stream of kept answers; when it is full, the oldest go first."""
    return StreamSpec(
        "FRAMES",
        (subjects.frames("*"),),
        max_age_s=kept_s,
        max_bytes=kept_bytes,
        storage="memory",
        duplicate_window_s=min(kept_s, 120),
    )


FRAMES: Final = frames(ANSWERS_KEPT_S, ANSWERS_KEPT_BYTES)
CREDIT: Final = StreamSpec("CREDIT", (f"{subjects.CREDIT}.*",), max_age_s=30 * _DAY_S, max_bytes=_GIB // 4)
STREAMS: Final = (CALLS, USAGE, CREDIT, FRAMES)

SETTLE: Final = ConsumerSpec(
    "CALLS", "metering-settle", (f"{subjects.CALLS_COMPLETED}.*", f"{subjects.CALLS_FAILED}.*")
)
CONSUMERS: Final = (SETTLE,)

REVISIONS: Final = BucketSpec("hub_revisions")
"""Revision of `catalog` and of `identity`: a cache that missed a `changed` message sees that it is behind."""
PROVIDER_HEALTH: Final = BucketSpec("hub_provider_health", ttl_s=600)
"""Cool-downs and circuit state, one key per provider and credential, shared by all routers."""
DUTY_LEASES: Final = BucketSpec("hub_duty_leases", ttl_s=300)
"""Which janitor runs which duty."""
DUTY_RUNS: Final = BucketSpec("hub_duty_runs")
"""When each duty ran last and what came of it: whoever takes it over makes up for what was missed."""
BUCKETS: Final = (REVISIONS, PROVIDER_HEALTH, DUTY_LEASES, DUTY_RUNS)
