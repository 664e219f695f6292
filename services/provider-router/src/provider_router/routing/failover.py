"""Which failures allow another candidate, as long as no byte of an answer has gone to the client."""

from typing import Final

from contracts.errors import ErrorCode, HubError

_PROVIDER_AT_FAULT: Final = frozenset(
    {
        ErrorCode.UPSTREAM_AUTHENTICATION,
        ErrorCode.UPSTREAM_RATE_LIMITED,
        ErrorCode.UPSTREAM_UNAVAILABLE,
        ErrorCode.UPSTREAM_TIMEOUT,
        ErrorCode.UPSTREAM_BROKEN,
    }
)
_REFUSED_CONTENT: Final = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})
"""Providers' own codes of a refusal for what was asked, whichever status it came with."""


def may_try_next(error: HubError) -> bool:
    """Whether another provider may be asked the same.

    Yes when the provider is at fault, or when it was never asked because its API cannot say what the client wants.
    Never after a rejection of the request itself (400, 404, 413, 422), a refusal of its content or 402: another
    provider would be asked for what one has already judged, and both may bill it.
    """
    if error.provider_code in _REFUSED_CONTENT:
        return False
    return error.code in _PROVIDER_AT_FAULT or error.code is ErrorCode.UNSUPPORTED_FEATURE
