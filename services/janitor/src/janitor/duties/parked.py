"""Say loudly what is parked: facts, whose money nobody has booked, and reports that Payment Kit would not take."""

from typing import Final

import structlog
from prometheus_client import Gauge

from contracts.rpc import metering, reconcile
from contracts.rpc.envelope import Empty
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "parked"
_log = structlog.get_logger("parked")
_parked = Gauge("hub_parked_facts", "Facts that could not be settled and that nobody has accepted.")
_reports = Gauge("hub_parked_reports", "Meter events that Payment Kit would not take.")


async def watch_parked(bus: Bus) -> str:
    """Ask metering how many there are.

    Raises:
        HubError: metering does not answer.
    """
    found = await rpc.ask(bus, metering.SERVICE, reconcile.PARKED_COUNT, Empty(), reconcile.ParkedCount)
    _parked.set(found.parked)
    if found.parked:
        _log.error("facts are parked: see `hub reconcile`", parked=found.parked, reasons=found.reasons)
    _reports.set(found.reports)
    if found.reports:
        _log.error("reports to Payment Kit are parked: see `hub payments status`", parked=found.reports)
    return f"{found.parked} facts, {found.reports} reports"
