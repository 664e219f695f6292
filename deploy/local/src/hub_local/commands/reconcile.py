"""`hub reconcile` and `hub recompute`: do the books agree, and what puts them right."""

import asyncio
import json
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from contracts.errors import ErrorCode, HubError
from contracts.money import ZERO
from contracts.rpc import metering
from contracts.rpc import reconcile as r
from contracts.rpc.envelope import Empty
from hub_local.commands import bill as bills
from hub_local.commands import show
from hub_local.commands.session import UsageError, connected, run
from runtime import rpc
from runtime.bus import Bus

DIFFERENT: Final = 1
COULD_NOT_RUN: Final = 2
_ASK_S: Final = 30.0
_REPAIR_S: Final = 120.0
_LOOK_EVERY_S: Final = 0.3
_SHOWN_MAX: Final = 200
_ALL: Final = "all"
_OPERATOR: Final = "operator"
Flag = Annotated[bool, Parameter(negative="")]


def reconcile(
    *,
    recent: Flag = False,
    verify: Flag = False,
    repair: str | None = None,
    accept: str | None = None,
    reason: str = "",
    bill: Path | None = None,
    provider: str | None = None,
    tolerance: str = "1%",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Compare the books with each other, the bus and Payment Kit; exit code 1 when they differ, 2 when nobody knows.

    Args:
        recent: only what came after the last closed day.
        verify: compute the digests of all closed days again instead.
        repair: id of a difference to repair by added rows, or `all` for those of the last comparison.
        accept: id of a difference to leave as it is.
        reason: why it is repaired or left.
        bill: a provider's bill as CSV, to be compared with what it served.
        provider: whose bill it is; the file's name when absent.
        tolerance: share by which bill and books may differ, e.g. 0.5%.
        as_json: the comparison as one JSON document.
    """
    if repair is not None:
        run(_repair(repair, reason), failure=COULD_NOT_RUN)
    elif accept is not None:
        run(_accept(accept, reason), failure=COULD_NOT_RUN)
    elif bill is not None:
        wanted = bills.read(bill, failure=COULD_NOT_RUN)
        differs = run(bills.compare(wanted, provider or bill.stem.lower(), tolerance), failure=COULD_NOT_RUN)
        raise SystemExit(DIFFERENT if differs else 0)
    else:
        scope: r.Scope = "closings" if verify else "recent" if recent else "all"
        report, differences = run(_compared(scope), failure=COULD_NOT_RUN)
        _show(report, differences, as_json=as_json)
        raise SystemExit(_exit_code(report))


def _exit_code(report: r.ReconcileReport) -> int:
    if report.differences:
        return DIFFERENT
    return COULD_NOT_RUN if any(each.not_compared for each in report.comparisons) else 0


def recompute(
    *,
    since: Annotated[str, Parameter(name="--from")],
    until: Annotated[str, Parameter(name="--to")],
    account: str | None = None,
    apply: Flag = False,
) -> None:
    """Price the calls of a period again by their frozen rates; exit code 1 when a charge differs.

    Args:
        since: the first day, or a time with offset.
        until: the day after the last, or a time with offset.
        account: only this account's calls.
        apply: write an adjustment for each difference and move what the account has spent.
    """
    wanted = r.Recompute(
        since=_as_time(since), until=_as_time(until), account=account, apply=apply, applied_by=_OPERATOR
    )
    pages = run(_recomputed(wanted), failure=COULD_NOT_RUN)
    differences = [each for page in pages for each in page.differences]
    show.table(
        ("call", "account", "charged", "priced", "adjusted", "note"),
        [(d.call_id, d.account, d.charged, d.priced, "yes" if d.applied else "no", d.note) for d in differences],
    )
    charged = sum((Decimal(page.charged) for page in pages), ZERO)
    priced = sum((Decimal(page.priced) for page in pages), ZERO)
    print(
        f"\n{sum(page.calls for page in pages)} calls, charged {charged:f}, priced again {priced:f},"
        f" {len(differences)} differences, {sum(d.applied for d in differences)} adjusted"
    )
    raise SystemExit(DIFFERENT if any(not d.applied for d in differences) else 0)


async def _compared(scope: r.Scope) -> tuple[r.ReconcileReport, list[r.DifferenceView]]:
    async with connected() as bus:
        while True:
            wanted = r.ReconcileStart(scope=scope, started_by=_OPERATOR)
            started = await _ask(bus, r.RECONCILE_START, wanted, r.ReconcileStarted)
            report = await _ended(bus, started.run_id)
            if not started.already:
                break
        if report.state != "done":
            raise UsageError(f"the comparison is {report.state}: {report.error or 'its process ended'}")
        return report, await _differences(bus, report.run_id)


async def _ended(bus: Bus, run_id: str) -> r.ReconcileReport:
    said = ""
    while True:
        report = await _ask(bus, r.RECONCILE_GET, r.ReconcileGet(run_id=run_id, limit=1), r.ReconcileReport)
        if report.state != "running":
            return report
        if report.progress != said and sys.stderr.isatty():
            said = report.progress
            sys.stderr.write(f"comparing {said.replace('_', ' ')}…\n")
        await asyncio.sleep(_LOOK_EVERY_S)


async def _differences(bus: Bus, run_id: str | None) -> list[r.DifferenceView]:
    found: list[r.DifferenceView] = []
    after: int | None = 0
    while after is not None:
        wanted = r.ReconcileGet(run_id=run_id, after=after, limit=1000)
        report = await _ask(bus, r.RECONCILE_GET, wanted, r.ReconcileReport)
        found += report.page
        run_id, after = report.run_id, report.next_after
    return found


async def _repair(which: str, reason: str) -> None:
    async with connected() as bus:
        ids = [which]
        if which == _ALL:
            found = await _differences(bus, None)
            ids = [each.id for each in found if "--repair" in each.repair]
            print(f"{len(ids)} of {len(found)} differences can be repaired")
        for each in ids:
            wanted = r.ReconcileRepair(difference_id=each, reason=reason, repaired_by=_OPERATOR)
            try:
                done = await _ask(bus, r.RECONCILE_REPAIR, wanted, r.ReconcileRepaired, _REPAIR_S)
            except HubError as error:
                if which != _ALL or error.code != ErrorCode.CONFLICT:
                    raise
                print(f"{each}  {error.message}")
            else:
                print(f"{each}  {done.done}")


async def _accept(which: str, reason: str) -> None:
    if not reason.strip():
        raise UsageError("--reason says why the difference may stay")
    async with connected() as bus:
        wanted = r.ReconcileAccept(difference_id=which, reason=reason, accepted_by=_OPERATOR)
        await _ask(bus, r.RECONCILE_ACCEPT, wanted, Empty)
    print(f"{which}  accepted")


async def _recomputed(wanted: r.Recompute) -> list[r.RecomputePage]:
    pages: list[r.RecomputePage] = []
    async with connected() as bus:
        while not pages or wanted.after is not None:
            page = await _ask(bus, r.RECOMPUTE, wanted, r.RecomputePage, _REPAIR_S)
            pages.append(page)
            wanted = wanted.model_copy(update={"after": page.next_after})
    return pages


async def _ask(bus: Bus, method: str, wanted: rpc.Q, reply: type[rpc.A], timeout_s: float = _ASK_S) -> rpc.A:
    return await rpc.ask(bus, metering.SERVICE, method, wanted, reply, timeout_s=timeout_s)


def _show(report: r.ReconcileReport, differences: list[r.DifferenceView], *, as_json: bool) -> None:
    if as_json:
        whole = report.model_dump(mode="json", exclude={"page", "next_after"})
        whole["page"] = [each.model_dump(mode="json") for each in differences]
        print(json.dumps(whole, indent=2))
        return
    show.table(
        ("check", "left", "count", "credits", "right", "count", "credits", "differences"),
        [
            (
                c.check, c.left, c.left_count, c.left_sum, c.right, c.right_count, c.right_sum,
                "not compared" if c.not_compared else c.differences,
            )
            for c in report.comparisons
        ],
    )  # fmt: skip
    for c in report.comparisons:
        if c.note:
            print(c.note)
        if c.not_compared:
            print(f"{c.check}: {c.differences} differences, not compared to the end: {c.not_compared}")
    if differences:
        print()
        show.table(
            ("difference", "account", "call", "expected", "found", "why", "command"),
            [
                (d.check, d.account, d.call_id or "", d.expected, d.found, d.detail, d.repair)
                for d in differences[:_SHOWN_MAX]
            ],
        )
        counted = Counter(each.check for each in differences)
        print(f"\n{', '.join(f'{number} {check}' for check, number in counted.items())}")
        if report.scope == "closings":
            first = differences[0]
            print(f"first broken: {first.detail}{f', account {first.account}' if first.account else ''}")
    print(f"\n{report.differences} differences, {report.accepted} accepted")
    if report.scope == "closings" and report.closed_day is not None:
        print(f"closed up to {report.closed_day}, chain {report.closed_chain}")


def _as_time(words: str) -> str:
    """A day means its beginning in UTC."""
    return f"{words}T00:00:00Z" if len(words) == len("2026-01-31") else words
