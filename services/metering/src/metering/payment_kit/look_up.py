"""Does Payment Kit have an event? No call finds one by its identifier, so events around its time are listed.

Whether `start` and `end` mean the event's own time or the time at which it arrived is not recorded: the window covers
both.
"""

import time
from typing import Any, Final

from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.events import Judgement, MeterEvent, compare
from metering.payment_kit.meter import Meters

_MARGIN_S: Final = 300
_PAGE: Final = 100
_PAGES_MAX: Final = 200


async def customer_id(kit: PaymentKit, did: str) -> str:
    """Payment Kit's id of a customer, who is made if need be.

    Raises:
        PaymentKitError: no answer, or none with an id.
    """
    found = await kit.ask("GET", f"/api/customers/{part(did)}", body={"create": True})
    if not isinstance(found, dict) or not isinstance(found.get("id"), str) or not found["id"]:
        raise PaymentKitError("no_customer", detail="an answer without an id")
    return str(found["id"])


async def look_up(kit: PaymentKit, meters: Meters, event: MeterEvent) -> Judgement | None:
    """The event with our identifier, compared with ours; None when Payment Kit has none.

    Raises:
        PaymentKitError: the list could not be read to its end.
    """
    customer = await customer_id(kit, event.customer)
    for page in range(1, _PAGES_MAX + 1):
        query: dict[str, str | int | None] = {
            "event_name": meters.event_name,
            "customer_id": customer,
            "start": event.at - _MARGIN_S,
            "end": int(time.time()) + _MARGIN_S,
            "page": page,
            "pageSize": _PAGE,
        }
        listed = _listed(await kit.ask("GET", "/api/meter-events", query))
        for found in listed:
            if isinstance(found, dict) and found.get("identifier") == event.identifier:
                return compare(event, found)
        if len(listed) < _PAGE:
            return None
    raise PaymentKitError("too_many_events", detail="the list of events has no end")


def _listed(document: Any) -> list[Any]:
    """The list of an answer: bare, or as a member."""
    if isinstance(document, dict):
        document = document.get("list", document.get("data"))
    if not isinstance(document, list):
        raise PaymentKitError("no_list", detail="an answer that is no list")
    return document
