"""What administrators may write into a rate, and what is refused with which field."""

from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.errors import ErrorCode, HubError
from contracts.rpc.rate_changes import RatesSet
from provider_router.catalog.input import new_rate

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def _asked(**changes: Any) -> RatesSet:
    return RatesSet.model_validate({"pattern": "llm/a", "input": "1", "output": "2", **changes})


def _tier(above: int, input_: str = "1", output: str = "2", **more: str) -> dict[str, Any]:
    return {"above": above, "input": input_, "output": output, **more}


@pytest.mark.parity(108)
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"pattern": "no-slash"}, "pattern"),
        ({"input": "1e-7"}, "input"),
        ({"cache_write_1h": "0." + "0" * 20 + "1"}, "cache_write_1h"),
        ({"tiers": [_tier(10, "0.5")]}, "tiers.0.input"),
        ({"cache_read": "0.5", "tiers": [_tier(10, cache_read="0.4")]}, "tiers.0.cache_read"),
        ({"tiers": [_tier(10, "2", "3"), _tier(10, "3", "4")]}, "tiers.1.above"),
        ({"tiers": [_tier(10, "2", "3"), _tier(5, "3", "4")]}, "tiers.1.above"),
        ({"tiers": [_tier(10, "2", "3"), _tier(20, "3", "2")]}, "tiers.1.output"),
        ({"tiers": [_tier(10, "1e3")]}, "tiers.0.input"),
        ({"pieces": [{"unit": "image", "rate": "1E2"}]}, "pieces.0.rate"),
        ({"pieces": [{"unit": "image", "rate": "1"}, {"unit": "image", "rate": "2"}]}, "pieces.1.unit"),
        ({"effective_at": "2026-11-26T12:00:00Z"}, "effective_at"),
        ({"effective_at": "2020-01-01T00:00:00Z"}, "effective_at"),
        ({"effective_at": "2099-01-01T00:00:00Z"}, "effective_at"),
        ({"effective_at": "2027-01-01T00:00:00"}, "effective_at"),
        ({"effective_at": "tomorrow"}, "effective_at"),
    ],
)
def test_a_rate_that_is_none_is_refused_with_its_field(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(HubError) as refused:
        new_rate(_asked(**changes), NOW)
    assert (refused.value.code, refused.value.status, refused.value.param) == (
        ErrorCode.INVALID_REQUEST,
        400,
        param,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "NaN"},
        {"output": "-1"},
        {"reasoning": "Infinity"},
        {"request": "1e18"},
        {"tiers": [_tier(0)]},
        {"tiers": [_tier(10, "NaN")]},
        {"tiers": [_tier(above) for above in range(1, 11)]},
        {"pieces": [{"unit": "hour", "rate": "1"}]},
        {"pieces": [{"unit": "image", "rate": "-1"}]},
        {"expected_version": -1},
    ],
)
def test_what_is_out_of_its_domain_does_not_even_become_a_question(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        _asked(**changes)


def test_all_of_a_rate_arrives() -> None:
    rate = new_rate(
        _asked(
            cache_write_1h="0",
            tiers=[_tier(10, "2", "3"), _tier(20, "2", "3", cache_read="2")],
            pieces=[{"unit": "image", "rate": "1", "size": "s"}, {"unit": "image", "rate": "1"}],
            effective_at="2027-01-01T01:00:00+01:00",
            expected_version=7,
            changed_by="did:\x00admin",
        ),
        NOW,
    )
    assert (rate.values.cache_write_1h, rate.expected_version, rate.changed_by) == ("0", 7, "did:admin")
    assert rate.effective_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert [tier.above for tier in rate.values.tiers] == [10, 20]
