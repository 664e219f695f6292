"""What administrators do to single rates: find them, change many in one step or none, take them away."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from contracts.errors import ErrorCode, HubError
from contracts.rpc import rate_rows as q
from contracts.rpc.catalog import Values
from contracts.rpc.rate_changes import ChangeType, RatesList, RatesPage
from contracts.usage import RateType
from provider_router.catalog.catalog import Catalog
from provider_router.catalog.costs import values_of
from provider_router.catalog.input import ahead, by, checked_pattern, checked_values
from provider_router.catalog.rates import OPERATOR, found_from_row, from_row, iso, rate_for
from provider_router.sql.rate_rows import NewRate, RateRow, same
from provider_router.sql.store import Added, Store, changed_meanwhile

Key = tuple[str, RateType]
_NO_ROW: Final = 0
"""Version of what stands in no row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rates of one hub, one by one. Every method raises what PostgreSQL raises, and `HubError` for refusals."""

    catalog: Catalog
    store: Store

    async def listed(self, question: RatesList) -> RatesPage:
        """All rates in force: those of chat calls in the order in which they count, then the others."""
        chat = (await self.catalog.current()).rates
        others = (from_row(row) for row in self.catalog.rows if row.type != RateType.CHAT)
        wanted = question.pattern or ""
        return RatesPage(
            rates=tuple(
                rate
                for rate in (*chat, *others)
                if wanted in rate.pattern and (question.deprecated or not rate.deprecated)
            )
        )

    async def find(self, question: q.RatesFind) -> q.RatesFound:
        """A page of rates in force, by provider and model."""
        found = [
            rate
            for rate in await self._all()
            if (question.deprecated or not rate.deprecated) and all(_fits(rate, each) for each in question.wanted)
        ]
        found.sort(key=lambda rate: (rate.pattern, rate.type), reverse=question.descending)
        start = (question.page - 1) * question.page_size
        return q.RatesFound(count=len(found), rates=tuple(found[start : start + question.page_size]))

    async def get(self, question: q.RateGet) -> q.FoundRate:
        """The version with an id, or what has no row."""
        row = await self.store.by_id(question.rate_id)
        if row is not None:
            return found_from_row(row)
        for rate in (await self.catalog.current()).rates:
            if rate.rate_id == question.rate_id and rate.version == _NO_ROW:
                return q.FoundRate(**dict(rate))
        raise HubError(ErrorCode.NOT_FOUND, "There is no such rate, or it has been removed.", param="rate_id")

    async def change(self, question: q.RatesChange) -> q.RatesAdded:
        """Add versions in one transaction; with one wrong row none is added, and all that is wrong is told."""
        new, errors = await self._checked(question)
        if errors or question.dry_run:
            return q.RatesAdded(errors=tuple(errors))
        try:
            added = await self._add(new)
        except HubError as error:
            if error.code is not ErrorCode.CONFLICT:
                raise
            _, errors = await self._checked(question)  # somebody was faster: which rows are too late?
            if not errors:
                raise
            return q.RatesAdded(errors=tuple(errors))
        return q.RatesAdded(rates=tuple(found_from_row(row) for row in added.rows))

    async def remove(self, question: q.RatesRemove) -> q.RateRemoved:
        """Add a version without rates: from then on the pattern's models cost what a broader rate says, or nothing.

        What was planned before it does not begin any more.
        """
        pattern = checked_pattern(question.pattern)
        at = None if question.effective_at is None else ahead(question.effective_at, datetime.now(UTC))
        key = (pattern, question.type)
        row = next((row for row in (await self.store.read()).rates if row.key == key), None)
        row = row or await self.store.newest(*key)  # what is planned can be taken away before it begins
        if row is None:
            raise await self._not_removable(pattern, question.type)
        gone = replace(
            same(row, by(question.changed_by), "manual_update"),
            removed=True,
            effective_at=at,
            expected_version=question.expected_version,
        )
        added = await self._add([gone])
        (version,) = added.rows
        now = rate_for((await self.catalog.current()).rates, pattern) if question.type == RateType.CHAT else None
        return q.RateRemoved(
            pattern=pattern,
            type=question.type,
            version=version.version,
            effective_at=iso(version.effective_at),
            now=now,
        )

    async def _all(self) -> list[q.FoundRate]:
        """Everything in force, each with what is known of it."""
        rates = (await self.catalog.current()).rates
        built_in = (q.FoundRate(**dict(rate)) for rate in rates if rate.version == _NO_ROW)
        return [*(found_from_row(row) for row in self.catalog.rows), *built_in]

    async def _add(self, new: list[NewRate]) -> Added:
        added = await self.store.add_rates(new)
        await self.catalog.added(added.revision)
        return added

    async def _not_removable(self, pattern: str, type_: RateType) -> HubError:
        rates = (await self.catalog.current()).rates if type_ == RateType.CHAT else ()
        if any(rate.pattern == pattern for rate in rates):
            return HubError(
                ErrorCode.CONFLICT,
                f"{pattern} has no rate of its own that could be removed: its price is built in. Deprecate it to "
                "take its models out of service.",
                param="pattern",
            )
        return HubError(ErrorCode.NOT_FOUND, f"{pattern} has no rate for {type_}.", param="pattern")

    async def _checked(self, question: q.RatesChange) -> tuple[list[NewRate], list[q.RowError]]:
        """The versions to add, and what is wrong with those that cannot be added."""
        providers = {provider.name for provider in (await self.catalog.current()).providers}
        rows = {row.key: row for row in (await self.store.read()).rates}
        keys = [(rate.pattern, rate.type) for rate in question.rates]
        latest = await self.store.latest(sorted(set(keys)))
        who, now = by(question.changed_by), datetime.now(UTC)
        alone = len(keys) == 1
        new: list[NewRate] = []
        errors: list[q.RowError] = []
        for index, (rate, key) in enumerate(zip(question.rates, keys, strict=True)):
            try:
                _check_provider(rate.pattern, providers)
                made = _made(rate, rows.get(key), who, now)
                _check_once(key, keys[:index])
                _check_version(rate, latest.get(key, _NO_ROW))
            except HubError as error:
                errors.append(q.RowError(index=index, code=error.code, message=error.message, param=error.param))
            else:
                new.append(made if alone else replace(made, change_type=_bulk(rate)))
        return new, errors


def _fits(rate: q.FoundRate, wanted: q.Wanted) -> bool:
    provider, _, model = rate.pattern.partition("/")
    match wanted.field:
        case "provider":
            text = provider
        case "model":
            text = model
        case "type":
            text = rate.type
        case "display":
            text = "" if rate.about is None else rate.about.display
        case "description":
            text = "" if rate.about is None else rate.about.description
    if wanted.part:
        return any(value.casefold() in text.casefold() for value in wanted.values)
    return text in wanted.values


def _made(rate: q.RateInput, row: RateRow | None, who: str, now: datetime) -> NewRate:
    """The version, checked; what it does not say stays as it was."""
    made = NewRate(
        pattern=checked_pattern(rate.pattern),
        values=checked_values(values_of(rate)),
        changed_by=who,
        effective_at=None if rate.effective_at is None else ahead(rate.effective_at, now),
        expected_version=rate.expected_version,
        type=rate.type,
        about=rate.about,
        deprecated=bool(rate.deprecated),
    )
    if row is not None:
        made = replace(
            made,
            about=row.about if rate.about is None else rate.about,
            deprecated=row.deprecated if rate.deprecated is None else rate.deprecated,
            costs=row.costs,
            cost_source=row.cost_source,
            cost_at=row.cost_at,
        )
    if rate.unit_costs is None:
        return made
    costs = checked_values(Values(input=rate.unit_costs.input, output=rate.unit_costs.output))
    return replace(made, costs=costs, cost_source=OPERATOR, cost_at=now)


def _bulk(rate: q.RateInput) -> ChangeType:
    return "bulk_create" if rate.expected_version == _NO_ROW else "bulk_update"


def _check_provider(pattern: str, providers: Iterable[str]) -> None:
    name = pattern.partition("/")[0]
    if name not in providers:
        raise HubError(ErrorCode.NOT_FOUND, f"No provider {name[:40]!r} is configured.", param="provider")


def _check_once(key: Key, before: list[Key]) -> None:
    if key in before:
        raise HubError(
            ErrorCode.INVALID_REQUEST, f"{key[0]} stands twice in this change, as {key[1]} both times.", param="pattern"
        )


def _check_version(rate: q.RateInput, latest: int) -> None:
    if rate.expected_version == latest:
        return
    if rate.expected_version == _NO_ROW:
        raise HubError(
            ErrorCode.CONFLICT,
            f"{rate.pattern} has a rate for {rate.type} already, at version {latest}; change that one.",
            param="expected_version",
        )
    raise changed_meanwhile(rate.pattern, latest, rate.expected_version)
