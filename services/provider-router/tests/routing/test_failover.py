"""Which failures allow another candidate."""

import pytest

from contracts.errors import ErrorCode, HubError
from provider_router.routing.failover import may_try_next

ALLOWED = {
    ErrorCode.UPSTREAM_AUTHENTICATION,
    ErrorCode.UPSTREAM_RATE_LIMITED,
    ErrorCode.UPSTREAM_UNAVAILABLE,
    ErrorCode.UPSTREAM_TIMEOUT,
    ErrorCode.UPSTREAM_BROKEN,
    ErrorCode.UNSUPPORTED_FEATURE,
}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_a_provider_at_fault_or_one_that_cannot_say_it_is_passed_over(code: ErrorCode) -> None:
    assert may_try_next(HubError(code, "")) is (code in ALLOWED)


@pytest.mark.parametrize("provider_code", ["content_filter", "content_policy_violation"])
def test_a_refusal_of_content_is_final_whatever_status_it_came_with(provider_code: str) -> None:
    assert not may_try_next(HubError(ErrorCode.UPSTREAM_UNAVAILABLE, "", provider_code=provider_code))
