"""Close calls whose lease has ended: a failure into the same stream, behind a completion that may still wait there.

Source: settle protocol, step 12; crash rows 2, 3, 6, 7, 8 and 15. The janitor never writes to the books: metering
settles what it says like any other outcome, once, and a completion that was first wins.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
import structlog
from nats.js import JetStreamContext
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Gauge

from contracts import subjects
from contracts.errors import ErrorCode
from contracts.events import CallFailed, stale_message_id
from contracts.ids import new_span_id
from contracts.rpc import metering, model_calls
from contracts.streams import CALLS
from runtime import rpc
from runtime.bus import Bus
from runtime.telemetry import Tracing, read_traceparent

NAME: Final = "stale-calls"
_PAGE: Final = 1000
_ASK_TIMEOUT_S: Final = 3.0
_PUBLISH_TIMEOUT_S: Final = 2.0

_log = structlog.get_logger("stale_calls")
_ENCODER: Final = msgspec.json.Encoder()
_closed = Counter("hub_janitor_stale_calls_total", "Failures published for calls whose lease had ended.")
_oldest = Gauge("hub_oldest_open_call_age_seconds", "Age of the oldest call that is still processing; 0 = none.")


async def close_stale_calls(
    bus: Bus, js: JetStreamContext, tracing: Tracing, lease_s: float, now: Callable[[], str]
) -> str:
    """Ask metering which calls are stale, and publish `CallFailed` for each; returns when all are stored.

    Raises:
        HubError: metering does not answer.
        nats.errors.Error, TimeoutError: a failure may or may not be stored; the next run says it again, same id.
    """
    question = model_calls.StaleCalls(limit=_PAGE)
    reply = await rpc.ask(
        bus, metering.SERVICE, model_calls.STALE, question, model_calls.StaleReply, timeout_s=_ASK_TIMEOUT_S
    )
    _oldest.set(_age_s(reply.oldest_open_at, now()))
    stale = [call for call in reply.calls if _has_known_kind(call)]
    if not stale:
        return "0 closed"
    ended = await asyncio.gather(
        *(_traced(js, tracing, call, lease_s, now()) for call in stale), return_exceptions=True
    )
    failures = [error for error in ended if isinstance(error, BaseException)]
    _log.info("stale calls closed", calls=len(stale) - len(failures), not_stored=len(failures))
    if failures:
        raise failures[0]
    return f"{len(stale)} closed"


async def _traced(js: JetStreamContext, tracing: Tracing, call: model_calls.StaleCall, lease_s: float, at: str) -> None:
    """Publish within a span in the call's own trace, so that the trace says how the call ended."""
    parent = read_traceparent(f"00-{call.trace_id}-{new_span_id()}-01")
    span = tracing.start("close stale call", parent, SpanKind.PRODUCER, {"hub.call_id": call.call_id})
    try:
        await _publish(js, call, lease_s, at)
    finally:
        span.end(error=ErrorCode.STALE)


async def _publish(js: JetStreamContext, call: model_calls.StaleCall, lease_s: float, at: str) -> None:
    failed = CallFailed(
        call_id=call.call_id,
        epoch=call.epoch,
        account=call.account,
        kind=call.kind,
        code=ErrorCode.STALE,
        reason=f"No sign of life from the call's router for {lease_s:g} s; nothing is charged.",
        failed_at=at,
        trace_id=call.trace_id,
    )
    ack = await js.publish(
        subjects.calls_failed(subjects.CallKind(call.kind)),
        _ENCODER.encode(failed),
        timeout=_PUBLISH_TIMEOUT_S,
        stream=CALLS.name,
        headers={"Nats-Msg-Id": stale_message_id(call.call_id, call.epoch)},
    )
    if not ack.duplicate:
        _closed.inc()


def _has_known_kind(call: model_calls.StaleCall) -> bool:
    if call.kind in set(subjects.CallKind):
        return True
    _log.error("stale call of an unknown kind: a newer janitor must close it", call_id=call.call_id, kind=call.kind)
    return False


def _age_s(since: str | None, now: str) -> float:
    return max(0.0, (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()) if since else 0.0
