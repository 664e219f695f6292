"""From a checked request to a call that can be reserved: candidates, hold, ids."""

import hashlib
import time
from dataclasses import dataclass

from contracts import dispatch
from contracts.dispatch import DispatchHeader
from contracts.ids import new_call_id
from contracts.money import to_text
from contracts.rpc.metering import ReserveCall
from contracts.subjects import CallKind
from gateway.admission.peek import Peek
from gateway.admission.prices import Prices, hold_input_tokens, hold_output_tokens, hold_upper_bound
from gateway.auth.principals import Principal
from gateway.open_call import OpenCall
from gateway.settings import Settings
from runtime.telemetry import TraceContext


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the request's headers say beside the credential."""

    request_id: str
    project: str
    idempotency_key: str | None
    resumable: bool
    trace: TraceContext


def admit(
    peek: Peek,
    body: bytes,
    principal: Principal,
    context: RequestContext,
    prices: Prices,
    settings: Settings,
    *,
    number: int,
    gateway: str,
) -> OpenCall:
    """Make the call; no row exists yet.

    Raises:
        HubError: `model_not_found`, `model_unpriced`, or the catalogue is away.
    """
    model = peek.model or settings.default_model
    candidates = prices.resolve(model)
    # A stream's hold grows while it runs; a whole answer shows nothing until its end, so its limit is held at once.
    output_slice = settings.hold_output_tokens
    if peek.max_output_tokens is not None and not peek.stream:
        output_slice = peek.max_output_tokens
    hold = to_text(hold_upper_bound(peek, candidates, output_slice))
    call_id = new_call_id()
    reserve = ReserveCall(
        call_id=call_id,
        account=principal.account,
        hold=hold,
        kind=CallKind.CHAT,
        dialect="openai",
        model=model,
        stream=peek.stream,
        candidates=candidates,
        ttl_s=settings.call_ttl_s,
        user=principal.user,
        project=context.project or principal.project,
        key_id=principal.key_id,
        trace_id=context.trace.trace_id,
        request_id=context.request_id,
        idempotency_key=_key_digest(principal, context.idempotency_key),
        body_digest="" if context.idempotency_key is None else _body_digest(CallKind.CHAT, body),
    )
    header = DispatchHeader(
        call_id=call_id,
        epoch=1,
        number=number,
        gateway=gateway,
        account=principal.account,
        kind=CallKind.CHAT,
        dialect="openai",
        stream=peek.stream,
        deadline_ms=int((time.time() + settings.call_ttl_s) * 1000),
        candidates=candidates,
        hold=hold,
        hold_input_tokens=hold_input_tokens(peek),
        hold_output_tokens=hold_output_tokens(peek, output_slice),
        choices=peek.choices,
        traceparent=context.trace.traceparent,
        trace_id=context.trace.trace_id,
        include_usage=peek.include_usage,
        more_parts=max(0, -(-len(body) // dispatch.PART_BYTES) - 1),
        kept=context.resumable or context.idempotency_key is not None,
        ttl_ms=int(settings.call_ttl_s * 1000),
    )
    return OpenCall(header, body, reserve, due=time.monotonic() + settings.accept_s * 2)


def _key_digest(principal: Principal, key: str | None) -> str | None:
    """An Idempotency-Key belongs to its account and user; only the digest leaves the gateway."""
    if key is None:
        return None
    return hashlib.sha256(f"{principal.account}\n{principal.user}\n{key}".encode()).hexdigest()


def _body_digest(kind: CallKind, body: bytes) -> str:
    """What was asked, by kind and body, so that a key is never answered with the answer to something else."""
    return hashlib.sha256(f"{kind}\n".encode() + body).hexdigest()
