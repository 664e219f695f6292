"""Why a call has no answer, in the caller's words."""

from contracts import frames
from contracts.errors import ErrorCode, HubError


def lost(call_id: str, what: str) -> HubError:
    """The answer, or a part of it, will not come; whether it was paid is for the books to say."""
    text = f"{what}; GET /api/v2/calls/{call_id} tells what was charged."
    return HubError(ErrorCode.ANSWER_LOST, text)


def not_booked(call_id: str) -> HubError:
    """The answer is whole, and the books have not said a word in time."""
    text = f"The answer is complete but not booked; GET /api/v2/calls/{call_id} tells the outcome."
    return HubError(ErrorCode.SETTLEMENT_TIMEOUT, text)


def as_error(failure: frames.Failure) -> HubError:
    """A router's word as the refusal that the caller reads."""
    return HubError(
        ErrorCode(failure.code),
        failure.message,
        param=failure.param,
        status=failure.status or None,
        retry_after_s=failure.retry_after_s,
        provider_code=failure.provider_code,
        provider_type=failure.provider_type,
    )
