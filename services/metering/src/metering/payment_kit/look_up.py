"""What Payment Kit has: its meter events by customer, event name and time, since no call finds one by its identifier.

Whether `start` and `end` mean the event's own time or the time at which it arrived is not recorded: whoever asks
covers both.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.events import Judgement, MeterEvent, compare
from metering.payment_kit.meter import Meters

MARGIN_S: Final = 300
_PAGE: Final = 100
_LOOK_UP_MAX: Final = 20_000
"""Events that one look-up reads."""


async def customer_id(kit: PaymentKit, did: str) -> str:
    """Payment Kit's id of a customer, who is made if need be.

    Raises:
        PaymentKitError: no answer, or none with an id.
    """
    found = await kit.ask("GET", f"/api/customers/{part(did)}", body={"create": True})
    if not isinstance(found, dict) or not isinstance(found.get("id"), str) or not found["id"]:
        raise PaymentKitError("no_customer", detail="an answer without an id")
    return str(found["id"])


@dataclass(frozen=True, slots=True)
class EventList:
    """Reads the list of meter events."""

    kit: PaymentKit
    meters: Meters

    async def customer(self, did: str) -> str:
        """See `customer_id`."""
        return await customer_id(self.kit, did)

    async def pages(self, customer: str, event_name: str, start: int) -> AsyncIterator[list[dict[str, Any]]]:
        """A customer's events from a time on, in Payment Kit's order; what comes meanwhile may come twice.

        Args:
            customer: Payment Kit's id.
            event_name: of the meter.
            start: Unix seconds.

        Raises:
            PaymentKitError: the list could not be read to its end.
        """
        seen: set[object] = set()
        page = 1
        while True:
            query: dict[str, str | int | None] = {
                "event_name": event_name,
                "customer_id": customer,
                "start": start,
                "end": int(time.time()) + MARGIN_S,
                "page": page,
                "pageSize": _PAGE,
            }
            listed = _listed(await self.kit.ask("GET", "/api/meter-events", query))
            yield listed
            if len(listed) < _PAGE:
                return
            known = len(seen)
            seen.update(event.get("id") if isinstance(event.get("id"), str) else None for event in listed)
            if len(seen) == known:
                raise PaymentKitError("too_many_events", detail="the list of events has no end")
            page += 1


async def look_up(kit: PaymentKit, meters: Meters, event: MeterEvent, event_name: str) -> Judgement | None:
    """The event with our identifier, compared with ours; None when Payment Kit has none.

    Raises:
        PaymentKitError: the list could not be read to its end.
    """
    customer = await customer_id(kit, event.customer)
    looked = 0
    async for page in EventList(kit, meters).pages(customer, event_name, event.at - MARGIN_S):
        for found in page:
            if found.get("identifier") == event.identifier:
                return compare(event, found)
        looked += len(page)
        if looked >= _LOOK_UP_MAX:
            raise PaymentKitError("too_many_events", detail="the list of events has no end")
    return None


def _listed(document: Any) -> list[dict[str, Any]]:
    """The list of an answer: bare, or as a member."""
    if isinstance(document, dict):
        document = document.get("list", document.get("data"))
    if not isinstance(document, list):
        raise PaymentKitError("no_list", detail="an answer that is no list")
    if not all(isinstance(each, dict) for each in document):
        raise PaymentKitError("no_list", detail="a list of what are no events")
    return document
