"""The health of one provider, as pure functions: what a success or a failure makes of it.

closed (well) → open (cooling down until a moment) → half open (one probe) → closed, or open again for longer.
Times are seconds of the caller's monotonic clock.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from contracts.errors import ErrorCode, HubError

RATE_LIMIT_S: Final = 90.0
"""Cool-down after a 429 that names no time; also after a refused credential, which does not heal by itself."""
COOL_DOWN_MAX_S: Final = 180.0
FAILURES_MAX: Final = 3
"""Failures in a row that open the circuit."""
FAILURE_S: Final = 30.0
"""First cool-down after failures; doubles while probes fail."""
PROBE_S: Final = 60.0
"""How long a probe may stay unanswered before another call may be one."""

_AT_ONCE: Final = frozenset({ErrorCode.UPSTREAM_RATE_LIMITED, ErrorCode.UPSTREAM_AUTHENTICATION})
_COUNTED: Final = frozenset(
    {
        ErrorCode.UPSTREAM_UNAVAILABLE,
        ErrorCode.UPSTREAM_TIMEOUT,
        ErrorCode.UPSTREAM_BROKEN,
    }
)


class Condition(Enum):
    """What may be asked of a provider now."""

    WELL = auto()
    PROBE = auto()
    """Its cool-down is over; one call may find out."""
    COOLING = auto()


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one provider."""

    failures: int = 0
    """In a row, since the last success."""
    opened: int = 0
    """Cool-downs in a row, since the last success; 0 = the circuit is closed."""
    until: float = 0.0
    """End of the cool-down."""
    probed_at: float | None = None
    """When a probe set out; None = none is under way."""


WELL: Final = Health()


def condition(health: Health, now: float) -> Condition:
    """What may be asked of a provider at this moment."""
    if health.opened == 0:
        return Condition.WELL
    if now < health.until or (health.probed_at is not None and now < health.probed_at + PROBE_S):
        return Condition.COOLING
    return Condition.PROBE


def probing(health: Health, now: float) -> Health:
    """A call sets out as the probe."""
    return replace(health, probed_at=now)


def after_success(health: Health, now: float) -> Health:
    """An answer came.

    During a cool-down it belongs to a call that had begun before, or was asked for lack of anybody else: it ends a
    row of failures, but what the provider said about its limits still holds.
    """
    if health.opened and now < health.until:
        return replace(health, failures=0)
    return WELL


def after_failure(health: Health, error: HubError, now: float) -> Health:
    """A call failed; what was the request's own fault, or ours, shows that the provider is there."""
    if error.code in _AT_ONCE:
        seconds = RATE_LIMIT_S if error.retry_after_s is None else error.retry_after_s
        seconds = min(max(1.0, seconds), COOL_DOWN_MAX_S)  # in this order NaN becomes 1
        return Health(health.failures + 1, max(health.opened, 1), max(health.until, now + seconds))
    if error.code not in _COUNTED:
        return after_success(health, now) if error.code is ErrorCode.UPSTREAM_REJECTED else health
    failures = health.failures + 1
    if health.opened and now < health.until:
        return replace(health, failures=failures)  # calls that were under way; one outage is one cool-down
    if health.opened == 0 and failures < FAILURES_MAX:
        return replace(health, failures=failures)
    seconds = min(FAILURE_S * 2.0**health.opened, COOL_DOWN_MAX_S)
    return Health(failures, health.opened + 1, now + seconds)
