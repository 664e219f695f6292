"""Hold the rates against what vendors take now, and say so when the hub pays more than it charges."""

from typing import Final

import structlog
from prometheus_client import Gauge

from contracts.rpc import catalog, rate_changes
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "rate-check"
LIMIT_S: Final = 60.0
"""Reading the prices takes a second, adding a thousand versions another."""
_ASK_TIMEOUT_S: Final = 50.0
_SHOWN: Final = 5

_log = structlog.get_logger("rate_check")
_found = Gauge("hub_rates_checked", "Rates by what the last check found.", ["found"])
_waiting = Gauge("hub_rate_changes_waiting", "Rate changes that the last check left to an administrator.")


async def check_rates(bus: Bus, *, apply: bool) -> str:
    """Ask provider-router to check its rates.

    Args:
        bus: the janitor's.
        apply: whether small changes of cost are applied and large ones proposed.

    Raises:
        HubError: provider-router does not answer.
    """
    question = rate_changes.RatesCheck(apply=apply, changed_by="janitor")
    report = await rpc.ask(
        bus, catalog.SERVICE, rate_changes.RATES_CHECK, question, rate_changes.CheckReport, timeout_s=_ASK_TIMEOUT_S
    )
    for found in ("below_cost", "drift", "no_match", "normal"):
        _found.labels(found).set(report.counts.get(found, 0))
    waiting = [rate.pattern for rate in report.rates if rate.action in {"proposed", "waiting"}]
    _waiting.set(len(waiting))
    losing = [rate.pattern for rate in report.rates if rate.found == "below_cost" and rate.action != "applied"]
    if losing:
        _log.warning("rates below cost", rates=len(losing), first=losing[:_SHOWN], source=report.source)
    if waiting:
        _log.warning("rate changes wait for approval", changes=len(waiting), first=waiting[:_SHOWN])
    applied = sum(rate.action == "applied" for rate in report.rates)
    return f"{applied} applied, {len(waiting)} waiting, {len(losing)} below cost"
