"""Questions to metering about Payment Kit: where credits are bought, its webhooks, and reports to it."""

from typing import Final

from pydantic import Field

from contracts.money import ZERO, Credits
from contracts.rpc.envelope import Message

PAYMENT_LINK: Final = "payment_link"
PAYMENT_CALLBACK: Final = "payment_callback"
PAYMENT_STATUS: Final = "payment_status"
PAYMENT_PAUSE: Final = "payment_pause"
PAYMENT_RETRY: Final = "payment_retry"


class PaymentLinkGet(Message):
    """Where can users buy credits?"""


class PaymentLink(Message):
    """An http or https URL; None where there is no such page, or it is not known yet."""

    link: str | None


class PaymentCallback(Message):
    """A webhook of Payment Kit as it came; its signature is metering's to judge."""

    method: str
    url: str = Field(max_length=4000)
    """Path and query, not decoded."""
    headers: dict[str, str]
    """Those of the signature."""
    body: str = Field(max_length=300_000)


class PaymentCallbackReply(Message):
    """`good`, `unsigned` or `wrong`."""

    verdict: str


class PaymentStatusGet(Message):
    """How reporting to Payment Kit goes, and the first parked reports."""

    parked_max: int = Field(20, ge=0, le=1000)


class ParkedReport(Message):
    """A meter event that Payment Kit will not take as it is."""

    identifier: str
    account: str
    value: Credits
    reason: str
    tries: int
    created_at: str


class PaymentStatus(Message):
    """`unreported`: credits charged here and not yet known to be there."""

    is_on: bool
    is_paused: bool = False
    circuit_closed: bool = True
    """As the process that answers sees Payment Kit."""
    pending: int = 0
    parked: int = 0
    unreported: Credits = ZERO
    oldest_pending_at: str | None = None
    parked_reports: tuple[ParkedReport, ...] = ()


class PaymentPause(Message):
    """Stop or go on sending meter events, in every process."""

    paused: bool


class PaymentRetry(Message):
    """Try parked meter events again, unchanged; None = all."""

    identifiers: tuple[str, ...] | None = Field(None, max_length=1000)


class PaymentRetried(Message):
    """How many wait for another try now."""

    retried: int
