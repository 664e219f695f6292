"""Prometheus metrics of a gateway; labels are codes, never users, keys or models."""

import time
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from gateway.open_call import OpenCall

_REFUSED = Counter("hub_gateway_refused", "Requests answered with an error, by code.", ["code"])
_SECONDS = Histogram(
    "hub_gateway_call_seconds",
    "Seconds from admission to the last byte.",
    ["stream"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
JOINED = Counter("hub_gateway_joined", "Requests that were given to the call of an earlier one with the same key.")
OPEN = Gauge("hub_gateway_calls_open", "Calls that are open now.")
_STREAMS = _SECONDS.labels("true")
_WHOLE = _SECONDS.labels("false")


@cache
def _code(code: str) -> Counter:
    return _REFUSED.labels(code)


def refused(code: str) -> None:
    """Count one refusal."""
    _code(str(code)).inc()


def served(call: OpenCall) -> None:
    """Observe one call that got its answer."""
    (_STREAMS if call.header.stream else _WHOLE).observe(time.monotonic() - call.started)
