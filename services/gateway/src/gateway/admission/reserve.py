"""Reserves out: all calls admitted in one turn of the loop go to metering as one message.

The answer's callback dispatches what was reserved, without waking a task.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from nats.errors import Error as NatsError

from contracts import subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc import metering
from gateway.open_call import OpenCall
from runtime import failpoints
from runtime.bus import Bus, no_responders

_ENCODER: Final = msgspec.json.Encoder()
_REPLY: Final = msgspec.json.Decoder(metering.ReserveReply)
_SUBJECT: Final = subjects.rpc(metering.SERVICE, metering.RESERVE)
RESERVE_S: Final = 3.0
BATCH_MAX: Final = 256

Taken = Callable[[OpenCall, str, Callable[[OpenCall], None]], None]
"""A call whose Idempotency-Key belongs to another one, that one's id, and how to reserve the call after all."""


class Reserver:
    """Collects calls per turn and asks metering once for all of them."""

    def __init__(
        self, bus: Bus, reserved: Callable[[OpenCall], None], taken: Taken, payment_link: Callable[[], str | None]
    ) -> None:
        self._bus = bus
        self._reserved = reserved
        self._taken = taken
        self._payment_link = payment_link
        self._waiting: list[OpenCall] = []

    def reserve(self, call: OpenCall) -> None:
        """Queue one call; its hold is asked for at the end of this turn."""
        self._waiting.append(call)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), BATCH_MAX):
            self._ask_batch(waiting[start : start + BATCH_MAX])

    def _ask_batch(self, calls: list[OpenCall]) -> None:
        failpoints.hit("gateway.before_reserve")
        payload = _ENCODER.encode(metering.ReserveBatch(tuple(call.reserve for call in calls)))

        def replied(reply: bytes | None, headers: bytes | None) -> None:
            if reply is None or no_responders(headers):
                for call in calls:
                    call.fail(_away())
                return
            failpoints.hit("gateway.after_reserve")
            for call, result in zip(calls, _REPLY.decode(reply).results, strict=True):
                self._decide(call, result)

        try:
            self._bus.ask(_SUBJECT, payload, replied, RESERVE_S)
        except NatsError:
            for call in calls:
                call.fail(_away())

    def _decide(self, call: OpenCall, result: metering.ReserveResult) -> None:
        status = metering.ReserveStatus
        if result.status == status.RESERVED:
            self._reserved(call)
        elif result.status == status.ASK_AGAIN:
            self._ask_batch([call])  # alone: nobody else waits for this account's balance
        elif result.status == status.NOT_ENOUGH:
            call.refuse(
                not_enough(
                    f"This call may cost up to {call.reserve.hold} credits, more than the account has free",
                    self._payment_link(),
                )
            )
        elif result.status == status.KEY_TAKEN:
            self._taken(call, result.other_call_id, self.reserve)
        elif result.status == status.KEY_REUSED:
            call.refuse(
                HubError(
                    ErrorCode.IDEMPOTENCY_MISMATCH,
                    f"This Idempotency-Key belongs to call {result.other_call_id}, which had another body; "
                    "send a new key for a new request.",
                    param="Idempotency-Key",
                    call_id=result.other_call_id,
                )
            )
        elif result.status == status.INVALID:
            call.refuse(
                HubError(ErrorCode.INVALID_REQUEST, "The call's upper bound lies outside the range of credits.")
            )
        else:
            call.fail(_away())


def not_enough(what: str, payment_link: str | None) -> HubError:
    """The refusal of a call that the account cannot pay, with the link to pay at, if there is one.

    Args:
        what: the beginning of its sentence: what is missing.
        payment_link: where to buy credits.
    """
    advice = "add credits or lower max_tokens" if payment_link is None else f"add credits at {payment_link}"
    return HubError(ErrorCode.NOT_ENOUGH_CREDIT, f"{what}; {advice}.", link=payment_link)


def _away() -> HubError:
    return HubError(
        ErrorCode.SERVICE_UNAVAILABLE, "Credit cannot be reserved right now; try again shortly.", retry_after_s=1
    )
