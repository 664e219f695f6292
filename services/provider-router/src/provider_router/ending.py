"""How a call ends: the fact, the last frame, and the usage when no provider reported it."""

from typing import Final

import msgspec

from contracts import events, frames
from contracts.errors import REASON_CHARS_MAX, ErrorCode, HubError
from contracts.events import Outcome
from contracts.usage import Candidate, Usage, UsageSource
from provider_router import metrics, tokens
from provider_router.adapters.adapter import Ending
from provider_router.running import Router, RunningCall, ms_since

_ENCODER: Final = msgspec.json.Encoder()
_DATA_FRAME_BYTES: Final = 512 * 2**10


def complete(call: RunningCall, router: Router, ending: Ending) -> None:
    """Publish the fact and hand the held bytes to the gateway, which waits for the books."""
    candidate = call.candidate
    if candidate is None or ending.usage is None:
        raise HubError(ErrorCode.INTERNAL_ERROR, "The hub lost track of this call; nothing was charged.")
    router.outcomes.completed(
        events.CallCompleted(
            call_id=call.header.call_id,
            epoch=call.header.epoch,
            account=call.header.account,
            kind=call.header.kind,
            outcome=ending.outcome,
            candidate=candidate,
            usage=ending.usage,
            attempts=tuple(call.attempts),
            duration_ms=call.elapsed_ms(),
            first_byte_ms=call.first_byte_ms,
            completed_at=events.now_text(),
            gateway=call.header.gateway,
            router=router.process,
            finish_reason=ending.finish_reason[:60],
            provider_first_byte_ms=call.provider_first_byte_ms,
            trace_id=call.header.trace_id,
        )
    )
    held = ending.held
    if not call.header.stream:
        while len(held) > _DATA_FRAME_BYTES:
            router.frames.data(call.lane, held[:_DATA_FRAME_BYTES])
            held = held[_DATA_FRAME_BYTES:]
    call.frame(router, frames.FrameKind.END, frames.end_payload(held, ending.splice_at))
    metrics.outcome(ending.outcome)


def fail(call: RunningCall, router: Router, error: HubError) -> None:
    """Publish the failure; the client learns of it at once, since nothing is charged."""
    written_off = partial_usage(call) if call.candidate is not None else None
    failure = frames.Failure(
        code=error.code,
        message=error.message,
        status=error.status,
        param=error.param,
        retry_after_s=error.retry_after_s,
        provider_code=error.provider_code,
        provider_type=error.provider_type,
    )
    # Queued first, so that frame and fact leave in one write and the books' notice cannot overtake the error.
    call.frame(router, frames.FrameKind.ERROR, _ENCODER.encode(failure))
    router.outcomes.failed(
        events.CallFailed(
            call_id=call.header.call_id,
            epoch=call.header.epoch,
            account=call.header.account,
            kind=call.header.kind,
            code=error.code,
            reason=error.message[:REASON_CHARS_MAX],
            failed_at=events.now_text(),
            attempts=tuple(call.attempts),
            candidate=call.candidate,
            usage=written_off,
            duration_ms=call.elapsed_ms(),
            gateway=call.header.gateway,
            router=router.process,
            trace_id=call.header.trace_id,
        )
    )
    metrics.outcome(error.code)


def end_early(call: RunningCall, router: Router) -> None:
    """The task was cancelled: by the client's leaving, which is charged, or by a loss, which is not."""
    reason = call.stopped or ErrorCode.ROUTER_LOST
    if call.candidate is not None and (not call.attempts or call.attempts[-1].provider != call.candidate.provider):
        record(call, call.candidate, call.accepted_at, None)
    if reason is not ErrorCode.CLIENT_CANCELLED:
        fail(call, router, HubError(reason, "The call was stopped before its answer was complete; try again."))
        return
    if call.candidate is None:
        call.candidate = call.header.candidates[0]
    usage = partial_usage(call) if call.relayed else Usage(source=UsageSource.COUNTED)
    complete(call, router, Ending(b"", None, usage, "", Outcome.CANCELLED))


def partial_usage(call: RunningCall) -> Usage:
    """What a stream used so far: as reported, where the provider said so early, else counted."""
    if call.translation is None:
        return Usage(source=UsageSource.COUNTED)
    whole = counted(call, call.translation.delivered_text())
    reported = call.translation.reported()
    if reported is None:
        return whole
    return msgspec.structs.replace(
        reported, output_tokens=max(reported.output_tokens, whole.output_tokens), source=UsageSource.COUNTED
    )


def counted(call: RunningCall, text: str) -> Usage:
    return Usage(
        input_tokens=tokens.count_request(call.body),
        output_tokens=tokens.count_text(text),
        source=UsageSource.COUNTED,
    )


def record(call: RunningCall, candidate: Candidate, started: float, error: HubError | None) -> None:
    call.attempts.append(
        events.Attempt(
            number=len(call.attempts) + 1,
            provider=candidate.provider,
            model=candidate.model,
            credential=candidate.provider,
            status=call.answer.status if call.answer is not None else 0,
            error=error.code if error is not None else "",
            started_ms=int((started - call.accepted_at) * 1000),
            duration_ms=ms_since(started),
            first_byte_ms=call.provider_first_byte_ms,
        )
    )
    if error is not None:
        call.answer = None
