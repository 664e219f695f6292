"""What a gateway says on the bus about its calls. Every function raises what `Bus.send` raises."""

from typing import Final

import msgspec
import structlog
from nats.errors import Error as NatsError

from contracts import dispatch, events, subjects
from contracts.dispatch import DispatchHeader
from contracts.errors import ErrorCode
from contracts.rpc.metering import ReserveCall
from gateway.open_call import OpenCall
from runtime.bus import Bus, header_block

_log = structlog.get_logger("dispatch")
_ENCODER: Final = msgspec.json.Encoder()


def publish_requested(bus: Bus, reserve: ReserveCall) -> None:
    """A call has its hold and is on its way to a router."""
    fact = events.CallRequested(
        call_id=reserve.call_id,
        account=reserve.account,
        user=reserve.user,
        project=reserve.project,
        key_id=reserve.key_id,
        kind=reserve.kind,
        dialect=reserve.dialect,
        model=reserve.model,
        stream=reserve.stream,
        hold=reserve.hold,
        requested_at=events.now_text(),
        trace_id=reserve.trace_id,
        request_id=reserve.request_id,
    )
    bus.send(
        subjects.calls_requested(subjects.CallKind(reserve.kind)),
        _ENCODER.encode(fact),
        headers=header_block(Nats_Msg_Id=events.requested_message_id(reserve.call_id)),
    )


def publish_given_up(bus: Bus, header: DispatchHeader, code: ErrorCode, reason: str) -> None:
    """Reserved, but no router has it: the failure goes the way of all facts, and releases the hold.

    A bus that takes nothing is only noted: then the lease ends, and the janitor closes the call.
    """
    fact = events.CallFailed(
        call_id=header.call_id,
        epoch=header.epoch,
        account=header.account,
        kind=header.kind,
        code=code,
        reason=reason,
        failed_at=events.now_text(),
        trace_id=header.trace_id,
    )
    message_id = events.undispatched_message_id(header.call_id, header.epoch)
    try:
        bus.send(
            subjects.calls_failed(subjects.CallKind(header.kind)),
            _ENCODER.encode(fact),
            headers=header_block(Nats_Msg_Id=message_id),
        )
    except NatsError as error:
        _log.warning("failure not published", call_id=header.call_id, error=type(error).__name__)


def send_cancel(bus: Bus, process: str, call: OpenCall, reason: ErrorCode) -> None:
    """Its router need not go on."""
    message = dispatch.Cancel(process, (call.header.call_id,), reason)
    bus.send(subjects.cancel(call.router), _ENCODER.encode(message))


def send_parts(bus: Bus, call: OpenCall) -> None:
    """The rest of a large body, to the router that has accepted the call."""
    subject = subjects.inbox_parts(call.router)
    body, size = call.body, dispatch.PART_BYTES
    for number in range(1, call.header.more_parts + 1):
        part = body[number * size : (number + 1) * size]
        bus.send(subject, dispatch.pack_part(call.call_id, number, part))
