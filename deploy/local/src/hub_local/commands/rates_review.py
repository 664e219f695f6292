"""`hub rates`: prices from the package, margins, and whether rates still fit what vendors take."""

import sys

from pydantic import BaseModel

from contracts.rpc import catalog, rate_changes
from hub_local.commands import show
from hub_local.commands.rates import BY, prices
from hub_local.commands.session import A, ask, run

_LONG_S = 60.0


def import_rates(
    *providers: str,
    margin: str | None = None,
    credit_price: str | None = None,
    apply_rates: bool = True,
    deprecate_unmatched: bool = False,
    dry_run: bool = False,
) -> None:
    """Take unit costs from the price package over into the rates; what was set by hand keeps its prices.

    Args:
        providers: of these only; the configured ones when none is named.
        margin: percent on top of the costs; what each rate has, or HUB_MARGIN_PERCENT, when absent.
        credit_price: US dollars for one credit; HUB_CREDIT_PRICE when absent.
        apply_rates: whether rates follow; else only their costs are noted.
        deprecate_unmatched: take imported models out of service that the package does not know any more.
        dry_run: only show what would change.
    """

    async def asked() -> rate_changes.RatesChanged:
        wanted = rate_changes.RatesSync(
            providers=providers,
            margin_percent=margin,
            credit_price=credit_price,
            apply_rates=apply_rates,
            deprecate_unmatched=deprecate_unmatched,
            dry_run=dry_run,
            changed_by=BY,
        )
        return await _ask(rate_changes.RATES_SYNC, wanted, rate_changes.RatesChanged)

    _show_changed(run(asked()))


def margin(percent: str, *, credit_price: str | None = None, dry_run: bool = False) -> None:
    """Compute all imported rates again: cost * (1 + margin %) / credit price.

    Args:
        percent: the margin.
        credit_price: US dollars for one credit; HUB_CREDIT_PRICE when absent.
        dry_run: only show what would change.
    """

    async def asked() -> rate_changes.RatesChanged:
        wanted = rate_changes.RatesMargin(
            margin_percent=percent, credit_price=credit_price, dry_run=dry_run, changed_by=BY
        )
        return await _ask(rate_changes.RATES_MARGIN, wanted, rate_changes.RatesChanged)

    _show_changed(run(asked()))


def check(*, apply: bool = False) -> None:
    """Compare rates with what vendors take now. Exit code 2 when a rate lies below cost.

    Args:
        apply: change what moved by less than 10 %, and propose the rest for approval.
    """

    async def asked() -> rate_changes.CheckReport:
        return await _ask(
            rate_changes.RATES_CHECK, rate_changes.RatesCheck(apply=apply, changed_by=BY), rate_changes.CheckReport
        )

    report = run(asked())
    show.table(
        ("pattern", "found", "drift %", "margin %", "action"),
        [
            (rate.pattern, rate.found, rate.drift_percent, rate.margin_percent or "", rate.action)
            for rate in report.rates
        ],
    )
    counts = ", ".join(f"{number} {name}" for name, number in sorted(report.counts.items())) or "no rates to check"
    print(f"{counts}; prices from {report.source}")
    if any(rate.found == "below_cost" and rate.action != "applied" for rate in report.rates):
        sys.exit(2)


def proposals() -> None:
    """List rate changes that wait for approval."""

    async def asked() -> rate_changes.Proposals:
        return await _ask(rate_changes.RATES_PROPOSALS, rate_changes.RatesProposals(), rate_changes.Proposals)

    show.table(
        ("id", "pattern", "why", "drift %", "from", "to", "costs from", "since"),
        [
            (
                each.proposal_id, each.pattern, each.reason, each.drift_percent, prices(each.old), prices(each.new),
                each.cost_source, each.proposed_at,
            )
            for each in run(asked()).proposals
        ],
    )  # fmt: skip


def approve(proposal_id: str) -> None:
    """Approve a proposed rate change; it is in force at once.

    Args:
        proposal_id: from `hub rates proposals`.
    """
    _decide(proposal_id, approve=True)


def refuse(proposal_id: str) -> None:
    """Refuse a proposed rate change.

    Args:
        proposal_id: from `hub rates proposals`.
    """
    _decide(proposal_id, approve=False)


def _decide(proposal_id: str, *, approve: bool) -> None:
    async def asked() -> rate_changes.Decided:
        wanted = rate_changes.RatesDecide(proposal_id=proposal_id, approve=approve, changed_by=BY)
        return await _ask(rate_changes.RATES_DECIDE, wanted, rate_changes.Decided)

    decided = run(asked())
    now = "" if decided.rate is None else f": {prices(decided.rate)}, version {decided.rate.version}"
    print(f"{decided.pattern} {decided.decision}{now}")


async def _ask(method: str, request: BaseModel, reply: type[A]) -> A:
    return await ask(catalog.SERVICE, method, request, reply, _LONG_S)


def _show_changed(changed: rate_changes.RatesChanged) -> None:
    show.table(
        ("pattern", "change", "from", "to", "costs from"),
        [
            (change.pattern, change.change, prices(change.old), prices(change.new), change.cost_source)
            for change in changed.changes
        ],
    )
    done = "would be " if changed.dry_run else ""
    print(
        f"{done}created {changed.created}, updated {changed.updated}, deprecated {changed.deprecated}; "
        f"unchanged {changed.unchanged}, without a price {len(changed.unmatched)}"
    )
    for error in changed.errors:
        sys.stderr.write(f"hub: {error}\n")
