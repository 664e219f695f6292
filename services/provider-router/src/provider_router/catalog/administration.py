"""What administrators do to rates: set, look back, deprecate, import, mark up, check, approve."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from contracts.errors import ErrorCode, HubError
from contracts.rpc import rate_changes
from contracts.rpc.catalog import RateView
from contracts.rpc.conversion import RatesConvert, conversion_id
from contracts.usage import RateType
from provider_router.catalog.catalog import Catalog
from provider_router.catalog.check import Finding, checked
from provider_router.catalog.costs import Policy, plain, values_of
from provider_router.catalog.input import by, checked_pattern, given_prices, new_rate
from provider_router.catalog.matching import VENDORS, Costs
from provider_router.catalog.package import PackageError, PackagePrices
from provider_router.catalog.rates import OPERATOR, from_row, iso, rate_for, version_from_row
from provider_router.catalog.sync import Plan, SyncOptions, in_another_unit, synced, with_margin
from provider_router.sql.rate_rows import NewRate, RateRow, same
from provider_router.sql.reviews import NewProposal, Proposed, Reviews
from provider_router.sql.store import Store

_HUNDREDTH: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Administration:
    """The rates of one hub, as their administrators see them.

    Every method raises what PostgreSQL raises, and `HubError` for what is refused. What takes a thousand rates at once
    is computed in a thread, so that the calls of this router go on.
    """

    catalog: Catalog
    store: Store
    reviews: Reviews
    policy: Policy
    """Margin and credit price where a question names none."""
    providers: tuple[str, ...]
    """Configured ones that the price package may know."""
    read_package: Callable[[Sequence[str]], Awaitable[PackagePrices]]

    async def set_rates(self, question: rate_changes.RatesSet) -> RateView:
        """Add a version; a rate that is deprecated stays so."""
        rate = new_rate(question, datetime.now(UTC))
        row = await self._row(question.pattern)
        if row is not None:
            rate = replace(rate, deprecated=row.deprecated, about=row.about)
        return await self._add(rate)

    async def deprecate(self, question: rate_changes.RatesDeprecate) -> RateView:
        """Take a pattern out of service, or back, at the rates that it has."""
        pattern = checked_pattern(question.pattern)
        stored = await self.store.read()
        row = next((row for row in stored.rates if row.key == (pattern, RateType.CHAT)), None)
        rates = (await self.catalog.current()).rates
        current = next((rate for rate in rates if rate.pattern == pattern), None) or rate_for(rates, pattern)
        if current is None:
            raise HubError(
                ErrorCode.NOT_FOUND,
                f"No rate is in force for {pattern}; `hub rates list` shows what there is.",
                param="pattern",
            )
        if (
            row is not None
            and row.deprecated == question.deprecated
            and question.expected_version in {None, row.version}
        ):
            return from_row(row)
        who = by(question.changed_by)
        first = NewRate(pattern, values_of(current), who, "deprecation", OPERATOR)
        rate = first if row is None else replace(same(row, who, "deprecation"), source=OPERATOR)
        return await self._add(
            replace(rate, deprecated=question.deprecated, expected_version=question.expected_version)
        )

    async def history(self, question: rate_changes.RatesHistory) -> rate_changes.RateVersions:
        """Versions, newest first."""
        found = await self.store.history(question.pattern, question.before, question.limit)
        return rate_changes.RateVersions(versions=tuple(version_from_row(row, previous) for row, previous in found))

    async def sync(self, question: rate_changes.RatesSync) -> rate_changes.RatesChanged:
        """Import unit costs from the package, or those given."""
        providers, package, unknown = await self._prices(question)
        stored = await self.store.read()
        margin = question.margin_percent
        options = SyncOptions(
            providers=providers,
            policy=self._policy(margin, question.credit_price),
            given_margin=margin is not None,
            apply_rates=question.apply_rates,
            deprecate_unmatched=question.deprecate_unmatched,
            changed_by=by(question.changed_by),
            now=datetime.now(UTC),
            given_costs=question.costs is not None,
        )
        plan = await asyncio.to_thread(synced, stored.rates, package, options)
        report = await self._carry_out(plan, stored.revision, dry_run=question.dry_run)
        return report.model_copy(update={"errors": unknown})

    async def margin(self, question: rate_changes.RatesMargin) -> rate_changes.RatesChanged:
        """Compute imported rates again with another margin."""
        stored = await self.store.read()
        policy = self._policy(question.margin_percent, question.credit_price)
        plan = await asyncio.to_thread(with_margin, stored.rates, policy, by(question.changed_by))
        return await self._carry_out(plan, stored.revision, dry_run=question.dry_run)

    async def convert(self, question: RatesConvert) -> rate_changes.RatesChanged:
        """Multiply all rates that stand in a row, once per price."""
        stored = await self.store.read()
        if stored.begins_in_s is not None:
            raise HubError(
                ErrorCode.CONFLICT,
                "Rates that begin later are written in the old unit; `hub rates history` shows them. Set them again "
                "with the conversion done.",
            )
        who = f"conversion {conversion_id(question.price)}"
        rows = () if await self.store.has_changed(who) else stored.rates
        plan = await asyncio.to_thread(in_another_unit, rows, Decimal(question.price), who)
        plan.unchanged = len(stored.rates) - len(rows)
        return await self._carry_out(plan, stored.revision, dry_run=question.dry_run)

    async def check(self, question: rate_changes.RatesCheck) -> rate_changes.CheckReport:
        """Hold the rates against today's costs; the finding is kept."""
        stored = await self.store.read()
        providers = {row.pattern.partition("/")[0] for row in stored.rates}
        costs = Costs(await self._package(providers) if providers else PackagePrices())
        findings = await asyncio.to_thread(checked, stored.rates, costs, self.policy)
        actions: dict[str, str] = {}
        if question.apply:
            actions = await self._act(findings, stored.revision, by(question.changed_by))
        rates = tuple(_seen(finding, actions) for finding in findings if finding.found != "normal")
        counts = dict(Counter(finding.found for finding in findings))
        found = json.dumps([rate.model_dump() for rate in rates])
        check_id = await self.reviews.record(by(question.changed_by), costs.source, json.dumps(counts), found)
        return rate_changes.CheckReport(check_id=check_id, source=costs.source, counts=counts, rates=rates)

    async def proposals(self) -> rate_changes.Proposals:
        """Changes that wait for approval."""
        waiting = await self.reviews.waiting()
        rows = {row.pattern: row for row in (await self.store.read()).rates if row.type == RateType.CHAT}
        return rate_changes.Proposals(
            proposals=tuple(_shown(each, rows[each.pattern]) for each in waiting if each.pattern in rows)
        )

    async def decide(self, question: rate_changes.RatesDecide) -> rate_changes.Decided:
        """Approve a proposal, which adds its version, or refuse it."""
        proposal = await self.reviews.find(question.proposal_id)
        who = by(question.changed_by)
        row = await self._row(proposal.pattern)
        rate = _followed(proposal, row, who) if question.approve and row is not None else None
        if question.approve and rate is None:
            raise HubError(ErrorCode.CONFLICT, f"No rate of {proposal.pattern} is in force.", param="proposal_id")
        added = await self.reviews.decide(proposal, who, rate)
        if added is None:
            return rate_changes.Decided(pattern=proposal.pattern, decision="refused", rate=None)
        await self.catalog.added(added.revision)
        return rate_changes.Decided(pattern=proposal.pattern, decision="approved", rate=from_row(added.rows[0]))

    async def _act(self, findings: Sequence[Finding], revision: int, changed_by: str) -> dict[str, str]:
        """Change what may be changed without being asked, propose the rest; pattern → action."""
        suggested = [finding for finding in findings if finding.suggested is not None and finding.cost is not None]
        small = [finding for finding in suggested if not finding.needs_approval]
        large = [finding for finding in suggested if finding.needs_approval]
        actions: dict[str, str] = {finding.row.pattern: "applied" for finding in small}
        if small:
            added = await self.store.add_rates(
                [_followed(_proposal(each), each.row, changed_by) for each in small], based_on=revision
            )
            await self.catalog.added(added.revision)
        proposals = [_proposal(finding) for finding in large]
        for proposal, result in zip(proposals, await self.reviews.propose(proposals), strict=True):
            actions[proposal.pattern] = result
        return actions

    async def _carry_out(self, plan: Plan, revision: int, *, dry_run: bool) -> rate_changes.RatesChanged:
        if plan.new and not dry_run:
            added = await self.store.add_rates(plan.new, based_on=revision)
            await self.catalog.added(added.revision)
        return plan.report(dry_run=dry_run)

    async def _add(self, rate: NewRate) -> RateView:
        added = await self.store.add_rates([rate])
        await self.catalog.added(added.revision)
        return from_row(added.rows[0])

    async def _row(self, pattern: str) -> RateRow | None:
        """What is in force for chat calls of exactly this pattern."""
        return next((row for row in (await self.store.read()).rates if row.key == (pattern, RateType.CHAT)), None)

    async def _prices(self, question: rate_changes.RatesSync) -> tuple[frozenset[str], PackagePrices, tuple[str, ...]]:
        """Whose rates follow which unit costs, and what is wrong with the providers named."""
        if question.costs is None:
            providers = frozenset(question.providers or self.providers)
            package = await self._package(providers)
            unknown = sorted({*question.providers} - package.models.keys())
            return providers, package, tuple(f"The price package knows no provider {name!r}." for name in unknown)
        package = given_prices(question.costs)
        configured = {provider.name for provider in (await self.catalog.current()).providers}
        providers = frozenset(question.providers or package.models)
        errors = tuple(f"No provider {name!r} is configured." for name in sorted(providers - configured))
        return providers & configured, package, errors

    async def _package(self, providers: Iterable[str]) -> PackagePrices:
        """Prices of these providers, and of the vendors whose prices resellers inherit."""
        try:
            return await self.read_package(sorted({*providers, *VENDORS}))
        except PackageError as error:
            raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "The price package cannot be read; try again.") from error

    def _policy(self, margin_percent: str | None, credit_price: str | None) -> Policy:
        return Policy(
            self.policy.margin_percent if margin_percent is None else Decimal(margin_percent),
            self.policy.credit_price if credit_price is None else Decimal(credit_price),
        )


def _percent(share: Decimal) -> str:
    return plain((share * 100).quantize(_HUNDREDTH, ROUND_HALF_UP))


def _seen(finding: Finding, actions: dict[str, str]) -> rate_changes.CheckedRate:
    margin = finding.margin_percent
    return rate_changes.CheckedRate.model_validate(
        {
            "pattern": finding.row.pattern,
            "found": finding.found,
            "drift_percent": _percent(finding.drift),
            "margin_percent": None if margin is None else plain(margin.quantize(_HUNDREDTH, ROUND_HALF_UP)),
            "action": actions.get(finding.row.pattern, "none"),
        }
    )


def _shown(proposal: Proposed, row: RateRow) -> rate_changes.Proposal:
    return rate_changes.Proposal(
        proposal_id=proposal.proposal_id,
        pattern=proposal.pattern,
        version=proposal.version,
        reason=proposal.reason,
        drift_percent=_percent(proposal.drift),
        old=row.values,
        new=proposal.values,
        cost_source=proposal.cost_source,
        proposed_at=iso(proposal.proposed_at),
    )


def _proposal(finding: Finding) -> NewProposal:
    assert finding.suggested is not None  # noqa: S101 - the caller picked those
    assert finding.cost is not None  # noqa: S101 - as above
    return NewProposal(
        finding.row.pattern,
        finding.reason,
        finding.drift,
        finding.suggested,
        finding.cost.values,
        finding.cost.source,
    )


def _followed(proposal: NewProposal | Proposed, row: RateRow, changed_by: str) -> NewRate:
    """The version that follows from a proposal, made at once or approved later."""
    change_type: rate_changes.ChangeType = "auto_update" if proposal.reason == "below_cost" else "source_drift"
    return replace(
        same(row, changed_by, change_type),
        values=proposal.values,
        costs=proposal.costs,
        cost_source=proposal.cost_source,
        cost_at=datetime.now(UTC),
    )
