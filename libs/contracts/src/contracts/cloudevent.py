"""The envelope of USAGE and CREDIT: CloudEvents 1.0, structured JSON."""

from typing import Final

import msgspec

from contracts.events import CreditNotice, UsageRecorded, credit_event_id, usage_event_id

CONTENT_TYPE: Final = "application/cloudevents+json"
USAGE_RECORDED_TYPE: Final = "io.aigne.hub.v1.usage.recorded"
CREDIT_TYPE: Final = "io.aigne.hub.v1.credit"
SOURCE: Final = "/services/metering"


class UsageEvent(msgspec.Struct, frozen=True, omit_defaults=False):
    """A CloudEvent whose data is a settled call."""

    id: str
    subject: str
    """`accounts/<id>`."""
    time: str
    sequence: str
    """Per account, zero-padded to 20 digits, so that it sorts as text (CloudEvents extension `sequence`)."""
    data: UsageRecorded
    specversion: str = "1.0"
    type: str = USAGE_RECORDED_TYPE
    source: str = SOURCE
    datacontenttype: str = "application/json"


def usage_event(data: UsageRecorded) -> UsageEvent:
    """The event of a settled call; the same call always gives the same id and sequence."""
    return UsageEvent(
        id=usage_event_id(data.call_id),
        subject=f"accounts/{data.account}",
        time=data.settled_at,
        sequence=f"{data.sequence:020d}",
        data=data,
    )


class CreditEvent(msgspec.Struct, frozen=True, omit_defaults=False):
    """A CloudEvent whose data is a notice about a balance."""

    id: str
    subject: str
    """`accounts/<id>`."""
    time: str
    sequence: str
    """Number of the notice, zero-padded to 20 digits."""
    type: str
    """`io.aigne.hub.v1.credit.` and the level: `low`, `depleted`, `granted`, `expired`."""
    data: CreditNotice
    specversion: str = "1.0"
    source: str = SOURCE
    datacontenttype: str = "application/json"


def credit_event(data: CreditNotice, event_id: str = "") -> CreditEvent:
    """The event of a notice; the same notice always gives the same id and sequence.

    Args:
        data: the notice.
        event_id: of a notice about what was given or ended; that about a balance has its own.
    """
    return CreditEvent(
        id=event_id or credit_event_id(data.account, data.number),
        subject=f"accounts/{data.account}",
        time=data.noticed_at,
        sequence=f"{data.number:020d}",
        type=f"{CREDIT_TYPE}.{data.level}",
        data=data,
    )
