"""Compare the books with each other and with the bus, and say loudly when they do not agree."""

import asyncio
from typing import Final

import structlog
from prometheus_client import Gauge

from contracts.errors import ErrorCode, HubError
from contracts.rpc import metering, reconcile
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "reconciliation"
LIMIT_S: Final = 1800.0
_LOOK_EVERY_S: Final = 0.5

_log = structlog.get_logger("reconciliation")
_differences = Gauge("hub_janitor_reconcile_differences", "Differences that the last reconciliation here has found.")


async def compare_books(bus: Bus) -> str:
    """Start a comparison of what is recent, or join one that runs, and wait for its end.

    Raises:
        HubError: metering does not answer, or the comparison could not be made.
    """
    wanted = reconcile.ReconcileStart(scope="recent", started_by=NAME)
    started = await rpc.ask(
        bus, metering.SERVICE, reconcile.RECONCILE_START, wanted, reconcile.ReconcileStarted, timeout_s=10.0
    )
    question = reconcile.ReconcileGet(run_id=started.run_id, limit=1)
    while True:
        report = await rpc.ask(
            bus, metering.SERVICE, reconcile.RECONCILE_GET, question, reconcile.ReconcileReport, timeout_s=10.0
        )
        if report.state != "running":
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if report.state != "done":
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, f"The comparison is {report.state}: {report.error}")
    _differences.set(report.differences)
    if report.differences:
        _log.error("the books do not agree: see `hub reconcile`", differences=report.differences, run=report.run_id)
    left_out = [f"{each.check} not compared: {each.not_compared}" for each in report.comparisons if each.not_compared]
    for each in left_out:
        _log.error("a part of the books could not be compared", what=each, run=report.run_id)
    notes = [each.note for each in report.comparisons if each.note]
    return "; ".join([f"{report.differences} differences", *notes, *left_out])
