"""The story of one call: candidates, upstream, relay, outcome."""

import asyncio
import time
from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError
from opentelemetry.trace import SpanKind

from contracts.errors import ErrorCode, HubError
from contracts.events import Outcome
from contracts.money import ZERO, to_text
from contracts.rpc import metering
from contracts.subjects import rpc
from contracts.usage import Candidate, UsageSource
from provider_router import metrics, signing
from provider_router.adapters.adapter import Adapter, Ending, Translation
from provider_router.ending import complete, counted, end_early, fail, partial_usage, record
from provider_router.routing import failover
from provider_router.running import Router, RunningCall, ms_since
from provider_router.transport import (
    ClosedEarlyError,
    Deadlines,
    InvalidRequestError,
    MalformedError,
    Response,
    TimedOutError,
    TooLargeError,
    UpstreamError,
)
from runtime import failpoints
from runtime.bus import no_responders
from runtime.telemetry import CallSpan, read_traceparent

_log = structlog.get_logger("call")
_ENCODER: Final = msgspec.json.Encoder()
_EXTEND_REPLY: Final = msgspec.json.Decoder(metering.ExtendReply)
_EXTEND: Final = rpc(metering.SERVICE, metering.EXTEND)
ANSWER_BYTES_MAX: Final = 64 * 2**20
ERROR_BYTES_MAX: Final = 256 * 2**10
_DATA_FRAME_BYTES: Final = 512 * 2**10
_EXTEND_S: Final = 2.0


async def serve(call: RunningCall, router: Router) -> None:
    """Answer one call and publish its outcome, exactly one. Never raises."""
    span = router.tracing.start(
        f"chat {call.header.candidates[0].model}",
        read_traceparent(call.header.traceparent),
        SpanKind.CLIENT,
        {"gen_ai.operation.name": "chat", "aigne.call_id": call.header.call_id},
    )
    try:
        ending = await _answered(call, router, span)
        await _cover(call, router, ending)
        complete(call, router, ending)
        span.end({"gen_ai.provider.name": call.attempts[-1].provider})
    except HubError as error:
        fail(call, router, error)
        span.end(error=error.code)
    except asyncio.CancelledError:
        end_early(call, router)
        span.end(error=call.stopped or ErrorCode.ROUTER_LOST)
    except Exception:  # noqa: BLE001 - the edge of a call: a bug fails one call, with an outcome, and is logged
        _log.exception("call failed", call_id=call.header.call_id)
        fail(call, router, HubError(ErrorCode.INTERNAL_ERROR, "The hub failed to serve this call; nothing is charged."))
        span.end(error=ErrorCode.INTERNAL_ERROR)
    finally:
        if call.answer is not None:
            call.answer.close()


async def _answered(call: RunningCall, router: Router, span: CallSpan) -> Ending:
    """Try candidates until one answers; after the first byte went out there is no other."""
    candidates = router.routing.order(call.header.candidates, time.monotonic())[: router.attempts_max]
    for left, candidate in zip(range(len(candidates) - 1, -1, -1), candidates, strict=True):
        started = time.monotonic()
        try:
            ending = await _attempt(call, router, candidate, span)
        except HubError as error:
            record(call, candidate, started, error)
            router.routing.failed(candidate.provider, error, time.monotonic())
            metrics.attempt(candidate.provider, error.code)
            if call.relayed or left == 0 or not failover.may_try_next(error):
                raise
            _log.info("trying the next provider", call_id=call.header.call_id, code=error.code)
        else:
            record(call, candidate, started, None)
            router.routing.succeeded(candidate.provider, time.monotonic())
            metrics.attempt(candidate.provider, "ok")
            return ending
    raise HubError(ErrorCode.UPSTREAM_UNAVAILABLE, "No provider of this model is available; try again shortly.")


async def _attempt(call: RunningCall, router: Router, candidate: Candidate, span: CallSpan) -> Ending:
    """One try at one provider, from request to the end of its answer."""
    provider = router.providers.get(candidate.provider)
    if provider is None:
        raise HubError(ErrorCode.UPSTREAM_UNAVAILABLE, f"Provider {candidate.provider} is not configured any more.")
    adapter = router.adapters[provider.kind]
    request = adapter.request(call.body, candidate.model, stream=call.header.stream)
    headers = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream" if call.header.stream else "application/json"),
        ("traceparent", span.context.traceparent),
        ("x-request-id", f"{call.header.call_id}:{len(call.attempts) + 1}"),
        *request.headers,
        *signing.headers(provider.kind, provider.api_key),
    ]
    started = time.monotonic()
    try:
        failpoints.hit("provider_router.before_upstream")
        answer = await router.openers[provider.kind].open(
            provider.base_url, request.path, headers, request.body, _deadlines(call, router.deadlines)
        )
        call.answer = answer
        if not 200 <= answer.status < 300:  # noqa: PLR2004 - HTTP's class of success
            raise adapter.error(answer.status, answer.headers, await answer.read(ERROR_BYTES_MAX))
        call.candidate = candidate
        if call.header.stream:
            return await _relay_stream(call, router, adapter, answer, started)
        return await _read_whole(call, router, adapter, answer, started)
    except UpstreamError as error:
        raise _as_hub_error(error) from error
    finally:
        if call.answer is not None:
            call.answer.close()


async def _read_whole(call: RunningCall, router: Router, adapter: Adapter, answer: Response, started: float) -> Ending:
    """A JSON answer: everything is held until the call is settled."""
    _expect(answer, "application/json")
    body = await answer.read(ANSWER_BYTES_MAX)
    ending = adapter.answer(body, created=int(time.time()))
    if ending.usage is None:
        usage = counted(call, adapter.answer_text(body))
        ending = adapter.with_usage(ending, usage)
    call.provider_first_byte_ms = ms_since(started)
    call.first_byte_ms = call.elapsed_ms()
    failpoints.hit("provider_router.after_upstream")
    call.answering(router)
    return ending


async def _relay_stream(
    call: RunningCall, router: Router, adapter: Adapter, answer: Response, started: float
) -> Ending:
    """A streamed answer: bytes go on as they come, the tail is held back."""
    _expect(answer, "text/event-stream")
    translation = adapter.translation(
        include_usage=call.header.include_usage, choices=call.header.choices, created=int(time.time())
    )
    call.translation = translation

    def take(data: bytes) -> bool:
        if not call.provider_first_byte_ms:
            call.provider_first_byte_ms = ms_since(started)
        out = translation.feed(data)
        if out:
            _relay(call, router, out)
            failpoints.hit("provider_router.mid_stream")
        return translation.complete or call.exhausted

    await answer.relay(take)
    if call.exhausted and not translation.complete:
        return _cut_short(call, translation)
    answer.finish()
    ending = translation.end()
    if ending.usage is None:
        ending = translation.with_usage(ending, counted(call, translation.delivered_text()))
    failpoints.hit("provider_router.after_upstream")
    if not call.relayed:
        call.answering(router)
    return ending


def _relay(call: RunningCall, router: Router, out: bytes) -> None:
    if not call.relayed:
        call.relayed = True
        call.first_byte_ms = call.elapsed_ms()
        call.answering(router)
    router.frames.data(call.lane, out)
    wanted = call.hold.relayed(out)
    if wanted:
        _extend(call, router, to_text(wanted))


def _extend(call: RunningCall, router: Router, amount: str) -> None:
    """Ask for one more slice while the answer runs on; a refusal cuts it at the next chunk."""

    def replied(payload: bytes | None, headers: bytes | None) -> None:
        call.hold.asking = False
        if payload is None or no_responders(headers):
            return  # metering is away: asked again with the next chunk
        reply = _EXTEND_REPLY.decode(payload)
        if reply.granted:
            call.hold.granted()
        elif reply.reason == "not_enough":
            call.exhausted = True

    request = metering.ExtendHold(call.header.call_id, call.header.epoch, call.header.account, amount)
    call.hold.asking = True
    router.bus.ask(_EXTEND, _ENCODER.encode(request), replied, _EXTEND_S)


async def _cover(call: RunningCall, router: Router, ending: Ending) -> None:
    """Raise the hold to what the answer costs, when it used more than was foreseen; what is refused is overrun.

    Not for figures that are out of bounds: a provider's lie costs its caller no more than the hold.
    """
    usage = ending.usage
    missing = ZERO if usage is None or usage.source is UsageSource.ESTIMATED else call.hold.missing(usage)
    if missing == ZERO:
        return
    request = metering.ExtendHold(call.header.call_id, call.header.epoch, call.header.account, to_text(missing))
    try:
        reply = _EXTEND_REPLY.decode(await router.bus.call(_EXTEND, _ENCODER.encode(request), _EXTEND_S))
    except (TimeoutError, NatsError, OSError) as error:  # metering is away: the answer is good all the same
        _log.warning("hold not raised", call_id=call.header.call_id, error=type(error).__name__)
        return
    if not reply.granted:
        _log.warning("hold not raised", call_id=call.header.call_id, reason=reply.reason)


def _cut_short(call: RunningCall, translation: Translation) -> Ending:
    """Credit ran out: the client's stream ends properly, with what was delivered on the bill."""
    ending = Ending(translation.cut("length", Outcome.CREDIT_EXHAUSTED), None, None, "length", Outcome.CREDIT_EXHAUSTED)
    return translation.with_usage(ending, partial_usage(call))


def _expect(answer: Response, content_type: str) -> None:
    given = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != content_type:
        raise HubError(
            ErrorCode.UPSTREAM_BROKEN,
            f"The provider answered with content type {given[:60]!r} instead of {content_type}; try again.",
        )


def _deadlines(call: RunningCall, limits: Deadlines) -> Deadlines:
    """The configured deadlines, none of them beyond the call's own."""
    header = call.header
    if header.ttl_ms:
        left = header.ttl_ms / 1000 - (time.monotonic() - call.accepted_at)
    else:  # a gateway of the last release
        left = header.deadline_ms / 1000 - time.time()
    if left <= 0:
        raise HubError(ErrorCode.UPSTREAM_TIMEOUT, "The call's deadline had passed before a provider was asked.")
    if left >= limits.total_s:
        return limits
    return Deadlines(
        connect_s=min(limits.connect_s, left),
        first_byte_s=min(limits.first_byte_s, left),
        idle_s=min(limits.idle_s, left),
        total_s=min(limits.total_s, left),
    )


def _as_hub_error(error: UpstreamError) -> HubError:
    """What a caller may know of a transport failure: no address, no text of the provider."""
    code, message = ErrorCode.UPSTREAM_UNAVAILABLE, "The provider could not be reached; try again shortly."
    match error:
        case TimedOutError():
            code, message = ErrorCode.UPSTREAM_TIMEOUT, "The provider did not answer in time; try again."
        case ClosedEarlyError(silent=False):
            code, message = ErrorCode.UPSTREAM_BROKEN, "The provider's answer was cut off; try again."
        case MalformedError():
            code, message = ErrorCode.UPSTREAM_BROKEN, "The provider's answer was malformed; try again."
        case TooLargeError():
            code, message = ErrorCode.UPSTREAM_BROKEN, "The provider's answer was larger than the hub relays."
        case InvalidRequestError():
            code, message = ErrorCode.INTERNAL_ERROR, "The provider's address or key cannot be used; tell the operator."
    return HubError(code, message)
