"""Prometheus metrics of a provider-router; labels are names and codes, never users or models."""

from functools import cache

from prometheus_client import Counter, Gauge

_OUTCOMES = Counter("hub_router_outcomes", "Calls by outcome or error code.", ["outcome"])
_ATTEMPTS = Counter("hub_router_attempts", "Upstream tries by provider and result.", ["provider", "result"])
RUNNING = Gauge("hub_router_calls_running", "Calls that run here now.")
UNSETTLED = Gauge("hub_router_outcomes_unsettled", "Outcomes published and not yet settled.")


@cache
def _outcome(outcome: str) -> Counter:
    return _OUTCOMES.labels(outcome)


@cache
def _attempt(provider: str, result: str) -> Counter:
    return _ATTEMPTS.labels(provider, result)


def outcome(name: str) -> None:
    """Count one call."""
    _outcome(str(name)).inc()


def attempt(provider: str, result: str) -> None:
    """Count one try."""
    _attempt(provider, str(result)).inc()
