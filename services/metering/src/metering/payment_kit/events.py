"""Meter events: what is sent, and what an answer to it means. Pure, no socket.

How Payment Kit answers a second event with a known identifier was never recorded. All forms that are plausible are
told apart here: success with the event that is there, 409, a 4xx that speaks of the identifier, and a database's
complaint about a unique column with any status. Each leads to a look-up by content before anything is believed.
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from metering.payment_kit.amounts import AmountError, same_value, to_decimal_text
from metering.payment_kit.client import Answer, PaymentKitError, error_text, refusal

_DUPLICATE: Final = re.compile(r"identifier|duplicat|unique|already (exist|been|record)|exists", re.IGNORECASE)
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404
_OURS_TO_REPAIR: Final = frozenset({401, 403})


class Result(StrEnum):
    """What is to be done with a row after an answer."""

    SENT = "sent"
    LOOK_UP = "look_up"
    """Payment Kit seems to know the identifier: see whether it has our value."""
    RETRY = "retry"
    """Payment Kit is away or busy."""
    REFUSED = "refused"
    """Key, address or meter are wrong: for the operator to repair, no fault of the row."""
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A result, why, and what came with it."""

    result: Result
    reason: str = ""
    event_id: str = ""
    retry_after_s: float = 0.0
    may_run_on: bool = False
    """Payment Kit may still be working on the request."""
    unhealthy: bool = False
    """Payment Kit, or the way to it, is not well: counts against the circuit."""


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """A row of the outbox, as it is sent: the same for ever."""

    id: UUID
    identifier: str
    customer: str
    """DID without its method."""
    project: str
    value: Decimal
    at: int
    """Unix seconds."""
    calls: int
    tokens: int

    def body(self, event_name: str) -> dict[str, Any]:
        """The JSON of the POST."""
        return {
            "event_name": event_name,
            "timestamp": self.at,
            "payload": {"customer_id": self.customer, "value": to_decimal_text(self.value)},
            "identifier": self.identifier,
            "metadata": {"appId": self.project},
            "source_data": [
                _source("source", "Source", "来源", "AIGNE Hub"),
                _source("record_count", "API Calls", "API 调用数", str(self.calls)),
                _source("total_tokens", "Total Tokens", "Token数量", str(self.tokens)),
                _source("total_credits", "Total Credits", "Credits 用量", to_decimal_text(self.value)),
            ],
        }


def judge(event: MeterEvent, answer: Answer) -> Judgement:
    """What the answer to a POST means."""
    refused = refusal(answer)
    if refused is None:
        return compare(event, answer.document)
    text = error_text(answer)
    if answer.status == _CONFLICT or (answer.status >= 400 and _DUPLICATE.search(text)):  # noqa: PLR2004
        return Judgement(Result.LOOK_UP, f"{answer.status} {text}")
    if refused.reason == "error_in_success" and _DUPLICATE.search(text):
        return Judgement(Result.LOOK_UP, text)
    return judge_error(refused)


def before_answer(error: PaymentKitError) -> Judgement:
    """What it means for a row that no answer to its POST came, or that what comes before it failed: never parked."""
    judged = judge_error(error)
    return replace(judged, result=Result.REFUSED) if judged.result is Result.PARKED else judged


def judge_error(error: PaymentKitError) -> Judgement:
    """What it means for a row that something failed which had to succeed."""
    reason = f"{error.reason} {error.status or ''} {error.detail}".strip()
    if error.transient:
        return Judgement(
            Result.RETRY,
            reason,
            retry_after_s=error.retry_after_s,
            may_run_on=error.status == 0 and error.was_sent,
            unhealthy=True,
        )
    if error.status in _OURS_TO_REPAIR or (error.status == _NOT_FOUND) or error.reason == "no_meter":
        return Judgement(Result.REFUSED, reason, unhealthy=True)
    # A page, a redirect or an error in a success: the way to Payment Kit is wrong, or it is not Payment Kit.
    return Judgement(Result.PARKED, reason, unhealthy=error.reason != "refused")


def compare(event: MeterEvent, document: Any) -> Judgement:
    """Whether an event of Payment Kit's is ours. Members that are absent say nothing; those that differ do."""
    if not isinstance(document, dict):
        return Judgement(Result.PARKED, "an answer that is no event", unhealthy=True)
    event_id = str(document.get("id") or "")
    if document.get("identifier", event.identifier) != event.identifier:
        return Judgement(Result.PARKED, "an event with another identifier", event_id)
    payload = document.get("payload")
    value = payload.get("value") if isinstance(payload, dict) else None
    if value is None:
        return Judgement(Result.SENT, event_id=event_id)
    try:
        if same_value(event.value, value):
            return Judgement(Result.SENT, event_id=event_id)
    except AmountError:
        return Judgement(Result.PARKED, "an event with a value that is no amount", event_id)
    return Judgement(Result.PARKED, f"the identifier is known with the value {value[:60]}", event_id)


def _source(key: str, en: str, zh: str, value: str) -> dict[str, Any]:
    return {"key": key, "label": {"en": en, "zh": zh}, "value": value}
