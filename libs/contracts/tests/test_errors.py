"""The closed set of error codes."""

import pytest

from contracts.errors import ERRORS, REASON_CHARS_MAX, ErrorCode, HubError, Retry
from contracts.rpc.envelope import Empty, Problem, Reply


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_row_with_a_status_and_a_meaning(code: ErrorCode) -> None:
    row = ERRORS[code]
    assert 400 <= row.status <= 599
    assert row.meaning.endswith(".")
    assert row.type


def test_no_row_belongs_to_a_code_that_is_gone() -> None:
    assert set(ERRORS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_what_a_client_did_wrong_is_not_worth_a_retry(code: ErrorCode) -> None:
    if ERRORS[code].status in {400, 401, 402, 403, 404, 405, 409, 413, 431}:
        assert ERRORS[code].retry is Retry.NO


@pytest.mark.parametrize("code", ErrorCode)
def test_error_carries_its_codes_status_unless_the_provider_had_its_own(code: ErrorCode) -> None:
    assert HubError(code, "why").status == ERRORS[code].status
    assert HubError(code, "why", status=422).status == 422


def test_reason_is_cut_to_its_bound() -> None:
    assert len(HubError(ErrorCode.STALE, "x" * 5000).message) == REASON_CHARS_MAX


@pytest.mark.parametrize("code", ErrorCode)
def test_problem_of_a_reply_is_raised_with_code_message_and_field(code: ErrorCode) -> None:
    problem = Problem(code=code, message="Do this.", param="messages")
    wire = Reply[Empty](error=problem).model_dump_json()
    with pytest.raises(HubError) as raised:
        Reply[Empty].model_validate_json(wire).unwrap()
    assert (raised.value.code, raised.value.message, raised.value.param) == (code, "Do this.", "messages")


def test_reply_that_says_nothing_is_an_internal_error() -> None:
    with pytest.raises(HubError) as raised:
        Reply[Empty].model_validate_json("{}").unwrap()
    assert raised.value.code is ErrorCode.INTERNAL_ERROR


def test_value_of_a_reply_is_unwrapped() -> None:
    assert Reply[Empty].model_validate_json('{"ok":{}}').unwrap() == Empty()
