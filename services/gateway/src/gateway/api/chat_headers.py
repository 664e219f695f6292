"""Headers of a chat request that say how it is to be served."""

from typing import Final

from contracts.errors import ErrorCode, HubError

_IDEMPOTENCY_KEY_MAX: Final = 255
_SWITCH: Final = {b"true": True, b"1": True, b"false": False, b"0": False}


def resumable(given: bytes | None) -> bool:
    """Whether the client wants to resume the stream, by `x-hub-resumable`.

    Raises:
        HubError: `invalid_request`.
    """
    if given is None:
        return False
    text = given.strip().lower()
    if text not in _SWITCH:
        raise HubError(ErrorCode.INVALID_REQUEST, "`x-hub-resumable` is true or false.", param="x-hub-resumable")
    return _SWITCH[text]


def idempotency_key(given: bytes | None) -> str | None:
    """The text of an `Idempotency-Key`.

    Raises:
        HubError: `invalid_request`.
    """
    if given is None:
        return None
    text = given.decode("latin-1").strip()
    if not text or len(text) > _IDEMPOTENCY_KEY_MAX:
        raise HubError(
            ErrorCode.INVALID_REQUEST,
            f"An Idempotency-Key has 1 to {_IDEMPOTENCY_KEY_MAX} characters.",
            param="Idempotency-Key",
        )
    return text
