"""The meter that all usage is reported to: found or made, with the unit that this hub counts in.

With it goes a setting by which Payment Kit leaves notices about grants and purchases to the hub. Both are made by one
process at a time.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import structlog

from metering.payment_kit.amounts import PLACES_MAX, PLACES_MIN
from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.making import BusyError, alone
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
NAME: Final = "AIGNE Hub AI Meter"
EVENTS: Final = ("customer.credit_grant.granted", "checkout.session.completed")
"""What the hub tells users itself."""
KEEP_S: Final = 86_400.0
"""A meter is asked for again after a day, as the original does."""
_NOT_FOUND: Final = 404
_BUSY_S: Final = 5.0
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
    name: str = NAME
    status: str = "active"


@dataclass(slots=True)
class Meters:
    """The one meter of this hub, remembered for a day."""

    kit: PaymentKit
    unit: Unit
    pool: Pool
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
            asyncpg.PostgresError, OSError, TimeoutError: it is to be made, and the books do not answer.
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
        found = await _there(self.kit, f"/api/meters/{part(event_name)}")
        if found is None:
            try:
                async with alone(self.pool, _BUSY_S):
                    found = await _there(self.kit, f"/api/meters/{part(event_name)}") or await self._made()
            except BusyError as error:
                raise PaymentKitError("busy", detail="another process makes the meter", transient=True) from error
        meter = _read(found, event_name, PLACES_MIN)
        if found.get("unit") != unit:
            await self._rename(meter, unit)
        return meter

    async def _made(self) -> Any:
        event_name, unit = _METERS[self.unit]
        wanted = {
            "name": NAME,
            "description": NAME,
            "event_name": event_name,
            "unit": unit,
            "aggregation_method": "sum",
            "metadata": {"setting_id": await self._setting()},
        }
        made = await self.kit.ask("POST", "/api/meters", body=wanted)
        _log.info("meter made", event_name=event_name)
        return made

    async def _setting(self) -> str:
        """Id of the setting that leaves notices to the hub; found or made, and put right where it says otherwise."""
        did = self.kit.component_did
        found = await _there(self.kit, f"/api/settings/{part(did)}")
        if found is None:
            found = await self.kit.ask("POST", "/api/settings", body=setting_body(did))
            _log.info("notification setting made")
        setting_id = found.get("id") if isinstance(found, dict) else None
        if not isinstance(setting_id, str) or not setting_id:
            raise PaymentKitError("no_setting", detail="an answer without an id")
        said = found.get("settings")
        events = said.get("include_events") if isinstance(said, dict) else None
        heard = events if isinstance(events, list) else []
        if isinstance(said, dict) and not (said.get("self_handle") is True and set(EVENTS) <= set(map(str, heard))):
            told = [*heard, *(event for event in EVENTS if event not in heard)]
            wanted = {"settings": {**said, "self_handle": True, "include_events": told}}
            await self.kit.ask("PUT", f"/api/settings/{part(setting_id)}", body=wanted)
            _log.info("notification setting changed")
        return setting_id

    async def _rename(self, meter: Meter, unit: str) -> None:
        """Give a meter its unit, and its currency the unit's name where Payment Kit did not do that by itself.

        How the currency is changed is not recorded, and it only shows: where that is refused, it is left as it is.
        """
        await self.kit.ask("PUT", f"/api/meters/{part(meter.id)}", body={"unit": unit})
        _log.info("unit of the meter changed", event_name=meter.event_name, unit=unit)
        found = await _there(self.kit, f"/api/meters/{part(meter.event_name)}")
        currency = found.get("paymentCurrency") if isinstance(found, dict) else None
        if isinstance(currency, dict) and {currency.get("name"), currency.get("symbol")} != {unit}:
            try:
                path = f"/api/payment-currencies/{part(meter.currency_id)}"
                await self.kit.ask("PUT", path, body={"name": unit, "symbol": unit})
            except PaymentKitError as error:
                if error.transient:
                    raise
                _log.warning("currency keeps its name", reason=error.reason, status=error.status)


async def existing(kit: PaymentKit, unit: Unit) -> Meter | None:
    """The meter of a unit, as it is; None where Payment Kit has none.

    Raises:
        PaymentKitError: Payment Kit does not answer, refuses, or answers with what is no meter.
    """
    event_name = _METERS[unit][0]
    found = await _there(kit, f"/api/meters/{part(event_name)}")
    return None if found is None else _read(found, event_name, 0)


def event_name_of(unit: Unit) -> str:
    """Event name of a unit's meter."""
    return _METERS[unit][0]


def setting_body(component_did: str) -> dict[str, Any]:
    """The setting by which Payment Kit leaves notices to the hub."""
    return {
        "type": "notification",
        "mountLocation": component_did,
        "description": "AIGNE Hub Notification Settings",
        "settings": {"self_handle": True, "include_events": list(EVENTS)},
    }


async def _there(kit: PaymentKit, path: str) -> Any:
    """The document of a path; None when Payment Kit has none, also when it answers `null`."""
    try:
        return await kit.ask("GET", path)
    except PaymentKitError as error:
        if error.status != _NOT_FOUND:
            raise
        return None


def _read(found: Any, event_name: str, places_min: int) -> Meter:
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
    if not isinstance(places, int) or not places_min <= places <= PLACES_MAX:
        raise PaymentKitError("no_meter", detail=f"the currency must have {places_min} to {PLACES_MAX} places")
    name, status = found.get("name") or NAME, found.get("status") or "active"
    return Meter(meter_id, event_name, currency_id, places, str(name)[:200], str(status)[:50])
