"""The envelope of USAGE: CloudEvents 1.0, structured JSON."""

from typing import Final

import msgspec

from contracts.events import UsageRecorded, usage_event_id

CONTENT_TYPE: Final = "application/cloudevents+json"
USAGE_RECORDED_TYPE: Final = "io.aigne.hub.v1.usage.recorded"
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
