"""Rates as versions: history, time of beginning, compare-and-set, deprecation, import, check and approval."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from pydantic import BaseModel
from rig.catalogs import CatalogRig
from rig.waiting import until

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc import catalog as q
from contracts.rpc import rate_changes
from contracts.rpc.conversion import RATES_CONVERT, RatesConvert
from contracts.rpc.envelope import Reply
from provider_router.catalog import package
from provider_router.catalog.package import PackagePrices, PackageRate
from runtime import migrations
from runtime.bus import Bus
from runtime.rpc import ask

A = TypeVar("A", bound=BaseModel)


class Desk:
    """An operator's questions."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def set(self, pattern: str = "llm/a", price: str = "0.1", **more: Any) -> q.RateView:
        wanted = {"pattern": pattern, "input": price, "output": price, "changed_by": "did:admin", **more}
        return await self._ask(rate_changes.RATES_SET, rate_changes.RatesSet.model_validate(wanted), q.RateView)

    async def deprecate(self, pattern: str, *, deprecated: bool = True, **more: Any) -> q.RateView:
        wanted = rate_changes.RatesDeprecate(pattern=pattern, deprecated=deprecated, changed_by="did:admin", **more)
        return await self._ask(rate_changes.RATES_DEPRECATE, wanted, q.RateView)

    async def rate(self, pattern: str = "llm/a") -> q.RateView:
        page = await self._ask(rate_changes.RATES_LIST, rate_changes.RatesList(), rate_changes.RatesPage)
        return next(rate for rate in page.rates if rate.pattern == pattern)

    async def history(self, **more: Any) -> tuple[rate_changes.RateVersion, ...]:
        return (
            await self._ask(rate_changes.RATES_HISTORY, rate_changes.RatesHistory(**more), rate_changes.RateVersions)
        ).versions

    async def sync(self, **more: Any) -> rate_changes.RatesChanged:
        return await self._ask(
            rate_changes.RATES_SYNC, rate_changes.RatesSync(changed_by="did:admin", **more), rate_changes.RatesChanged
        )

    async def margin(self, percent: str, **more: Any) -> rate_changes.RatesChanged:
        return await self._ask(
            rate_changes.RATES_MARGIN,
            rate_changes.RatesMargin(margin_percent=percent, **more),
            rate_changes.RatesChanged,
        )

    async def check(self, *, apply: bool = True) -> rate_changes.CheckReport:
        return await self._ask(
            rate_changes.RATES_CHECK,
            rate_changes.RatesCheck(apply=apply, changed_by="janitor"),
            rate_changes.CheckReport,
        )

    async def convert(self, price: str, **more: Any) -> rate_changes.RatesChanged:
        return await self._ask(RATES_CONVERT, RatesConvert(price=price, **more), rate_changes.RatesChanged)

    async def proposals(self) -> tuple[rate_changes.Proposal, ...]:
        return (
            await self._ask(rate_changes.RATES_PROPOSALS, rate_changes.RatesProposals(), rate_changes.Proposals)
        ).proposals

    async def decide(self, proposal_id: str, *, approve: bool) -> rate_changes.Decided:
        wanted = rate_changes.RatesDecide(proposal_id=proposal_id, approve=approve, changed_by="did:owner")
        return await self._ask(rate_changes.RATES_DECIDE, wanted, rate_changes.Decided)

    async def _ask(self, method: str, request: BaseModel, reply: type[A]) -> A:
        return await ask(self._bus, q.SERVICE, method, request, reply, 30.0)


class Vendor:
    """The price package, with prices that a test moves."""

    def __init__(self) -> None:
        self.version = "1"
        self.prices = {"llm/a": "0.1", "llm/b": "0.2"}

    async def read(self, _providers: Sequence[str]) -> PackagePrices:
        rates = tuple(PackageRate(pattern=name, input=price, output=price) for name, price in self.prices.items())
        return PackagePrices(version=self.version, rates=rates, models={"llm": ()})


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Vendor:
    vendor = Vendor()
    monkeypatch.setattr(package, "read", vendor.read)
    return vendor


@pytest.fixture
async def desk(catalogs: CatalogRig) -> Desk:
    await catalogs.router(providers={"llm": {"base_url": "https://llm.example.com", "models": "a,b"}})
    return Desk(await catalogs.connect(permissions.OPERATOR))


def refused(error: pytest.ExceptionInfo[HubError]) -> tuple[ErrorCode, str | None]:
    return error.value.code, error.value.param


@pytest.mark.parity(108)
async def test_all_units_of_a_rate_come_back_as_they_were_set(desk: Desk) -> None:
    whole = await desk.set(
        cache_write_1h="0.30",
        cache_read="0",
        tiers=[{"above": 200_000, "input": "0.2", "output": "0.4", "cache_read": "0", "cache_write_1h": "0.3"}],
        pieces=[{"unit": "image", "rate": "0.040", "size": "1024x1024", "quality": "hd"}],
    )
    assert await desk.rate() == whole
    assert (whole.cache_write_1h, whole.cache_read, whole.tiers[0].above) == ("0.30", "0", 200_000)
    assert (whole.pieces[0].rate, whole.pieces[0].quality) == ("0.040", "hd")


@pytest.mark.parity(114)
async def test_history_says_who_changed_what_when_and_why(desk: Desk) -> None:
    first = await desk.set(price="0.1")
    await desk.set("llm/b", "5")
    second = await desk.set(price="0.2", changed_by="did:other")
    await desk.deprecate("llm/a")
    out, newer, older = await desk.history(pattern="llm/a")
    assert (older.version, older.previous, older.changed_by, older.change_type) == (
        first.version,
        None,
        "did:admin",
        "manual_update",
    )
    assert newer.previous is not None
    assert (newer.version, newer.previous.input, newer.input, newer.changed_by) == (
        second.version,
        "0.1",
        "0.2",
        "did:other",
    )
    assert (out.change_type, out.deprecated, out.input) == ("deprecation", True, "0.2")
    assert older.changed_at <= newer.changed_at <= out.changed_at
    page = await desk.history(limit=2)
    assert [version.pattern for version in page] == ["llm/a", "llm/a"]
    rest = await desk.history(before=page[-1].version)
    assert [version.pattern for version in rest] == ["llm/b", "llm/a"]


async def test_two_administrators_at_once_the_second_gets_a_conflict(desk: Desk) -> None:
    seen = await desk.set()
    both = await asyncio.gather(
        desk.set(price="0.2", expected_version=seen.version),
        desk.set(price="0.3", expected_version=seen.version),
        return_exceptions=True,
    )
    (won,) = (result for result in both if isinstance(result, q.RateView))
    (lost,) = (result for result in both if isinstance(result, HubError))
    assert (lost.code, lost.status, lost.param) == (ErrorCode.CONFLICT, 409, "expected_version")
    assert str(won.version) in lost.message
    assert (await desk.rate()).input == won.input
    assert [version.version for version in await desk.history()] == [won.version, seen.version]
    with pytest.raises(HubError) as again:
        await desk.set("llm/b", expected_version=1)
    assert refused(again) == (ErrorCode.CONFLICT, "expected_version")
    await desk.set("llm/b", expected_version=0)


async def test_a_version_that_begins_later_begins_then_and_everybody_hears_of_it(catalogs: CatalogRig) -> None:
    served = [await catalogs.router(), await catalogs.router()]
    bus = await catalogs.connect(permissions.OPERATOR)
    gateway = await catalogs.connect(permissions.GATEWAY)
    heard: list[int] = []
    await gateway.listen(
        subjects.CATALOG_CHANGED,
        lambda _subject, _reply, payload, _headers: heard.append(
            q.CatalogChanged.model_validate_json(payload).revision
        ),
    )
    await gateway.flush()
    desk = Desk(bus)
    now_rate = await desk.set(price="0.1")
    begins = datetime.now(UTC) + timedelta(seconds=1.5)
    later = await desk.set(price="0.2", effective_at=begins.isoformat())
    assert (later.input, later.effective_at[:19]) == ("0.2", begins.isoformat()[:19])
    assert (await desk.rate()).version == now_rate.version
    known = [router.catalog.snapshot().revision for router in served]
    with pytest.raises(HubError) as stale:
        await desk.set(expected_version=now_rate.version)
    assert refused(stale) == (ErrorCode.CONFLICT, "expected_version")

    async def begun() -> bool:
        return all(any(rate.version == later.version for rate in router.catalog.snapshot().rates) for router in served)

    await until(begun)
    assert datetime.now(UTC) >= begins
    revisions = {router.catalog.snapshot().revision for router in served}
    assert min(revisions) > max(known)
    assert await catalogs.books.fetchval("select revision from catalog.revision") == max(known) + 1
    assert max(heard) in revisions


async def test_a_rate_set_today_does_not_undo_what_was_planned(desk: Desk, catalogs: CatalogRig) -> None:
    begins = datetime.now(UTC) + timedelta(seconds=1)
    planned = await desk.set(price="0.5", effective_at=begins.isoformat())
    today = await desk.set(price="0.3")
    assert (await desk.rate()).version == today.version
    await desk.deprecate("llm/a")

    async def begun() -> bool:
        return (await desk.rate()).version == planned.version

    await until(begun)
    assert (await desk.rate()).deprecated, "what was taken out of service stays out when a planned rate begins"


async def test_a_rate_in_the_past_is_refused_and_nothing_is_stored(desk: Desk, catalogs: CatalogRig) -> None:
    for when in ("2020-01-01T00:00:00Z", datetime.now(UTC).isoformat(), "never"):
        with pytest.raises(HubError) as error:
            await desk.set(effective_at=when)
        assert refused(error) == (ErrorCode.INVALID_REQUEST, "effective_at")
    assert await catalogs.books.fetchval("select count(*) from catalog.rate") == 0


async def test_what_would_break_the_database_is_refused_before_it(desk: Desk, catalogs: CatalogRig) -> None:
    bus = await catalogs.connect(permissions.OPERATOR)
    huge = {"input": "1", "output": "1", "pattern": "llm/a"}
    questions: list[tuple[str, type[BaseModel], dict[str, Any], str]] = [
        (rate_changes.RATES_HISTORY, rate_changes.RateVersions, {"pattern": "a\x00b"}, "pattern"),
        (rate_changes.RATES_HISTORY, rate_changes.RateVersions, {"before": 10**30}, "before"),
        (rate_changes.RATES_SYNC, rate_changes.RatesChanged, {"providers": ["a\x00"]}, "providers.0"),
        (rate_changes.RATES_SYNC, rate_changes.RatesChanged, {"providers": ["-c"]}, "providers.0"),
        (rate_changes.RATES_SYNC, rate_changes.RatesChanged, {"margin_percent": "NaN"}, "margin_percent"),
        (rate_changes.RATES_MARGIN, rate_changes.RatesChanged, {"margin_percent": "1000000"}, "margin_percent"),
        (rate_changes.RATES_MARGIN, rate_changes.RatesChanged, {"margin_percent": "-1"}, "margin_percent"),
        (
            rate_changes.RATES_MARGIN,
            rate_changes.RatesChanged,
            {"margin_percent": "1", "credit_price": "0"},
            "credit_price",
        ),
        (rate_changes.RATES_DECIDE, rate_changes.Decided, {"proposal_id": "a\x00", "approve": True}, "proposal_id"),
        (
            rate_changes.RATES_SET,
            q.RateView,
            {**huge, "pieces": [{"unit": "image", "rate": "1", "size": "\x00"}]},
            "pieces.0.size",
        ),
        (rate_changes.RATES_SET, q.RateView, {**huge, "expected_version": -1}, "expected_version"),
    ]
    for method, reply, wanted, param in questions:
        raw = json.dumps(wanted).encode()
        answer = await bus.call(subjects.rpc(q.SERVICE, method), raw, 10)
        with pytest.raises(HubError) as error:
            Reply[reply].model_validate_json(answer).unwrap()  # type: ignore[valid-type]
        assert refused(error) == (ErrorCode.INVALID_REQUEST, param), method


@pytest.mark.parity(111)
async def test_a_deprecated_rate_stays_so_until_somebody_takes_it_back(desk: Desk) -> None:
    await desk.set()
    out = await desk.deprecate("llm/a")
    assert (out.deprecated, (await desk.rate()).deprecated) == (True, True)
    assert (await desk.deprecate("llm/a")).version == out.version
    dearer = await desk.set(price="0.7")
    assert dearer.deprecated
    back = await desk.deprecate("llm/a", deprecated=False, expected_version=dearer.version)
    assert (back.deprecated, back.input) == (False, "0.7")
    with pytest.raises(HubError) as stale:
        await desk.deprecate("llm/a", expected_version=dearer.version)
    assert refused(stale) == (ErrorCode.CONFLICT, "expected_version")


async def test_a_model_that_nobody_set_a_rate_for_can_be_deprecated(desk: Desk) -> None:
    out = await desk.deprecate("demo/echo")
    assert (out.deprecated, out.input, out.source) == (True, "0.000001", "operator")
    with pytest.raises(HubError) as unknown:
        await desk.deprecate("llm/a")
    assert refused(unknown) == (ErrorCode.NOT_FOUND, "pattern")


@pytest.mark.parity(110)
async def test_an_import_shows_first_and_then_does_the_same(
    desk_of_vendor: tuple[Desk, Vendor], catalogs: CatalogRig
) -> None:
    desk, _ = desk_of_vendor
    planned = await desk.sync(margin_percent="10", dry_run=True)
    assert await catalogs.books.fetchval("select count(*) from catalog.rate") == 0
    done = await desk.sync(margin_percent="10")
    assert (done.created, done.changes) == (2, planned.changes)
    version = (await desk.history(pattern="llm/a"))[0]
    assert (version.input, version.margin_percent, version.cost_source) == ("0.1100000000", "10", "genai-prices 1")
    assert version.costs is not None
    assert (version.costs.input, version.change_type) == ("0.1", "bulk_create")
    assert version.cost_at is not None
    again = await desk.sync()
    assert (again.created, again.updated, again.unchanged) == (0, 0, 2)
    assert (await desk.sync(providers=["nobody"])).errors == ("The price package knows no provider 'nobody'.",)


@pytest.mark.parity(110)
async def test_a_margin_moves_all_imported_rates_in_one_step(desk_of_vendor: tuple[Desk, Vendor]) -> None:
    desk, _ = desk_of_vendor
    await desk.sync()
    assert (await desk.margin("25", credit_price="0.5", dry_run=True)).updated == 2
    assert (await desk.rate()).input == "0.1"
    assert (await desk.margin("25", credit_price="0.5")).updated == 2
    assert (await desk.rate()).input == "0.2500000000"


@pytest.mark.parity(69)
async def test_all_rates_change_their_unit_once_exactly_and_keep_what_they_came_from(
    desk_of_vendor: tuple[Desk, Vendor],
) -> None:
    desk, _ = desk_of_vendor
    await desk.sync()
    await desk.set(
        "llm/c",
        "0.1000000001",
        cache_read="0",
        tiers=[{"above": 200_000, "input": "0.2", "output": "0.4"}],
        pieces=[{"unit": "image", "rate": "0.040"}],
    )
    await desk.deprecate("llm/b")
    before = {version.pattern: version for version in reversed(await desk.history())}
    tried = await desk.convert("0.0000025", dry_run=True)
    assert (tried.updated, (await desk.rate("llm/c")).input) == (3, "0.1000000001")
    first, again = await desk.convert("0.0000025"), await desk.convert("0.00000250")
    assert (first.updated, first.unchanged, again.updated, again.unchanged) == (3, 0, 0, 3)
    by_hand = await desk.rate("llm/c")
    assert (by_hand.input, by_hand.cache_read) == ("0.00000025000000025", "0")
    assert (by_hand.tiers[0].output, by_hand.pieces[0].rate) == ("0.000001", "0.0000001")
    for pattern, old in before.items():
        (new, *_) = await desk.history(pattern=pattern)
        assert (new.costs, new.margin_percent, new.cost_source) == (old.costs, old.margin_percent, old.cost_source)
        assert (new.deprecated, new.source) == (old.deprecated, old.source)
        assert new.changed_by.startswith("conversion ")
    assert (await desk.convert("3")).updated == 3


async def test_rates_that_begin_later_or_would_not_fit_stop_a_conversion(desk: Desk) -> None:
    await desk.set(price="0.12345678901234567891")
    with pytest.raises(HubError) as too_long:
        await desk.convert("0.1234567890123456789")
    assert refused(too_long) == (ErrorCode.INVALID_REQUEST, "price")
    await desk.set(price="2", effective_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    with pytest.raises(HubError, match="begin later") as planned:
        await desk.convert("2", dry_run=True)
    assert planned.value.code == ErrorCode.CONFLICT


@pytest.mark.parity(112, 113)
async def test_small_drift_is_applied_and_large_drift_waits_for_approval(
    desk_of_vendor: tuple[Desk, Vendor], catalogs: CatalogRig
) -> None:
    desk, vendor = desk_of_vendor
    await desk.sync()
    vendor.version, vendor.prices = "2", {"llm/a": "0.105", "llm/b": "0.4"}
    looked = await desk.check(apply=False)
    assert [(rate.pattern, rate.action) for rate in looked.rates] == [("llm/a", "none"), ("llm/b", "none")]
    report = await desk.check()
    assert [(rate.pattern, rate.found, rate.drift_percent, rate.action) for rate in report.rates] == [
        ("llm/a", "below_cost", "4.76", "applied"),
        ("llm/b", "below_cost", "50.00", "proposed"),
    ]
    assert ((await desk.rate()).input, (await desk.rate("llm/b")).input) == ("0.105", "0.2")
    assert [rate.action for rate in (await desk.check()).rates] == ["waiting"]
    (proposal,) = await desk.proposals()
    assert (proposal.old.input, proposal.new.input, proposal.cost_source) == ("0.2", "0.4", "genai-prices 2")

    decided = await desk.decide(proposal.proposal_id, approve=True)
    assert decided.rate is not None
    assert (decided.rate.input, (await desk.rate("llm/b")).input) == ("0.4", "0.4")
    assert (await desk.history(pattern="llm/b"))[0].changed_by == "did:owner"
    assert await desk.proposals() == ()
    with pytest.raises(HubError) as twice:
        await desk.decide(proposal.proposal_id, approve=False)
    assert refused(twice) == (ErrorCode.CONFLICT, "proposal_id")
    assert (await desk.check()).counts == {"normal": 2}
    assert await catalogs.books.fetchval("select count(*) from catalog.rate_check") == 4


async def test_a_refused_proposal_is_not_made_again(desk_of_vendor: tuple[Desk, Vendor]) -> None:
    desk, vendor = desk_of_vendor
    await desk.sync()
    vendor.prices["llm/b"] = "0.1"
    assert (await desk.check()).rates[0].action == "proposed"
    (proposal,) = await desk.proposals()
    assert (await desk.decide(proposal.proposal_id, approve=False)).rate is None
    assert [rate.action for rate in (await desk.check()).rates] == ["none"]
    assert await desk.proposals() == ()
    assert (await desk.rate("llm/b")).input == "0.2"


async def test_a_proposal_is_void_once_somebody_set_another_rate(desk_of_vendor: tuple[Desk, Vendor]) -> None:
    desk, vendor = desk_of_vendor
    await desk.sync()
    vendor.prices["llm/b"] = "0.4"
    await desk.check()
    (proposal,) = await desk.proposals()
    await desk.set("llm/b", "0.9")
    assert await desk.proposals() == ()
    with pytest.raises(HubError) as void:
        await desk.decide(proposal.proposal_id, approve=True)
    assert refused(void) == (ErrorCode.CONFLICT, "expected_version")
    assert (await desk.rate("llm/b")).input == "0.9"
    for unknown in ("x", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(HubError) as missing:
            await desk.decide(unknown, approve=True)
        assert refused(missing) == (ErrorCode.NOT_FOUND, "proposal_id")


async def test_two_decisions_at_once_are_one(desk_of_vendor: tuple[Desk, Vendor]) -> None:
    desk, vendor = desk_of_vendor
    await desk.sync()
    vendor.prices["llm/b"] = "0.4"
    await desk.check()
    (proposal,) = await desk.proposals()
    both = await asyncio.gather(
        *(desk.decide(proposal.proposal_id, approve=True) for _ in range(2)), return_exceptions=True
    )
    assert sum(isinstance(result, rate_changes.Decided) for result in both) == 1
    assert len(await desk.history(pattern="llm/b")) == 2


async def test_rates_from_before_there_were_versions_stay_in_force(catalogs: CatalogRig) -> None:
    first, *later = migrations.found("provider_router", "catalog")
    await catalogs.books.execute("drop schema catalog cascade")
    await catalogs.books.execute(first.sql)
    await catalogs.books.execute(
        "insert into catalog.rate (revision, pattern, input, output, effective_at, changed_by)"
        " values (2, 'llm/a', 7, 8, '2026-01-01', 'did:admin'), (3, 'llm/a', 9, 10, '2026-02-01', 'did:admin')"
    )
    for each in later:
        await catalogs.books.execute(each.sql)
    await catalogs.router()
    desk = Desk(await catalogs.connect(permissions.OPERATOR))
    assert ((await desk.rate()).input, (await desk.rate()).version) == ("9", 3)
    newest, oldest = await desk.history()
    assert (newest.changed_at, newest.change_type, oldest.input) == ("2026-02-01T00:00:00.000Z", "manual_update", "7")
    with pytest.raises(asyncpg.RaiseError, match="only added"):
        await catalogs.books.execute("update catalog.rate set input = 0")


async def test_what_checks_found_and_who_decided_is_never_changed(
    desk_of_vendor: tuple[Desk, Vendor], catalogs: CatalogRig
) -> None:
    desk, vendor = desk_of_vendor
    await desk.sync()
    vendor.prices["llm/b"] = "0.4"
    await desk.check()
    (proposal,) = await desk.proposals()
    await desk.decide(proposal.proposal_id, approve=False)
    for statement in (
        "delete from catalog.rate_check",
        "update catalog.rate_proposal set drift = 0",
        "delete from catalog.rate_decision",
    ):
        with pytest.raises(asyncpg.RaiseError, match="only added"):
            await catalogs.books.execute(statement)


@pytest.fixture
async def desk_of_vendor(vendor: Vendor, desk: Desk) -> tuple[Desk, Vendor]:
    """With a price package whose prices a test moves."""
    return desk, vendor
