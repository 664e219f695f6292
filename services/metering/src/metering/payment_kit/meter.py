"""The meter that all usage is reported to: found or made, with the unit that this hub counts in."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import structlog

from metering.payment_kit.amounts import PLACES_MAX, PLACES_MIN
from metering.payment_kit.client import PaymentKit, PaymentKitError, part

_log = structlog.get_logger("payment_kit")
NAME: Final = "AIGNE Hub AI Meter"
KEEP_S: Final = 86_400.0
"""A meter is asked for again after a day, as the original does."""
_NOT_FOUND: Final = 404
Unit = Literal["USD", "credits"]
_METERS: Final[dict[Unit, tuple[str, str]]] = {
    "USD": ("agent-hub-ai-meter-v2", "USD"),
    "credits": ("agent-hub-ai-meter", "AIGNE Hub Credits"),
}


@dataclass(frozen=True, slots=True)
class Meter:
    """What a report needs to know."""

    id: str
    event_name: str
    currency_id: str
    places: int
    """Decimal places of the currency: amounts come back as integers of its smallest unit."""


@dataclass(slots=True)
class Meters:
    """The one meter of this hub, remembered for a day."""

    kit: PaymentKit
    unit: Unit
    clock: Callable[[], float] = time.monotonic
    _known: Meter | None = None
    _until: float = 0.0
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def event_names(self) -> tuple[str, ...]:
        """Of both meters, this hub's unit first: what was reported before the unit was changed is under the other."""
        return tuple(sorted((name for name, _ in _METERS.values()), key=lambda name: name != self.event_name))

    @property
    def event_name(self) -> str:
        """Of the meter that belongs to the unit."""
        return _METERS[self.unit][0]

    async def get(self) -> Meter:
        """The meter.

        Raises:
            PaymentKitError: Payment Kit does not answer, refuses, or answers with what is no meter.
        """
        async with self._asking:
            if self._known is None or self.clock() >= self._until:
                self._known = await self._found_or_made()
                self._until = self.clock() + KEEP_S
            return self._known

    def forget(self) -> None:
        """Ask again: Payment Kit does not know it any more."""
        self._known = None

    async def _found_or_made(self) -> Meter:
        event_name, unit = _METERS[self.unit]
        try:
            found = await self.kit.ask("GET", f"/api/meters/{part(event_name)}")
        except PaymentKitError as error:
            if error.status != _NOT_FOUND:
                raise
            found = None
        if found is None:  # also an answer of `null`
            wanted = {
                "name": NAME,
                "description": NAME,
                "event_name": event_name,
                "unit": unit,
                "aggregation_method": "sum",
                "metadata": {},
            }
            found = await self.kit.ask("POST", "/api/meters", body=wanted)
            _log.info("meter made", event_name=event_name)
        meter = _read(found, event_name)
        if found.get("unit") != unit:
            await self.kit.ask("PUT", f"/api/meters/{part(meter.id)}", body={"unit": unit})
            _log.info("unit of the meter changed", event_name=event_name, unit=unit)
        return meter


def _read(found: Any, event_name: str) -> Meter:
    currency = found.get("paymentCurrency") if isinstance(found, dict) else None
    if not isinstance(currency, dict):
        raise PaymentKitError("no_meter", detail="an answer without a currency")
    meter_id, currency_id, places = (
        found.get("id"),
        found.get("currency_id") or currency.get("id"),
        currency.get("decimal"),
    )
    if not isinstance(meter_id, str) or not isinstance(currency_id, str) or found.get("event_name") != event_name:
        raise PaymentKitError("no_meter", detail="an answer without id, currency or the event name")
    if not isinstance(places, int) or not PLACES_MIN <= places <= PLACES_MAX:
        raise PaymentKitError("no_meter", detail=f"the currency must have {PLACES_MIN} to {PLACES_MAX} places")
    return Meter(meter_id, event_name, currency_id, places)
