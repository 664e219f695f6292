"""Single rates: found page by page, changed many at once or not at all, and taken away without losing their history."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel
from rig.catalogs import CatalogRig

from contracts import permissions
from contracts.errors import ErrorCode, HubError
from contracts.rpc import catalog as q
from contracts.rpc import rate_changes, rate_rows
from contracts.usage import RateType
from provider_router import rpc
from provider_router.catalog import package
from provider_router.catalog.package import PackagePrices, PackageRate
from runtime.bus import Bus
from runtime.rpc import ask

A = TypeVar("A", bound=BaseModel)
Keyed = tuple[str, str]


class Desk:
    """An administrator's questions."""

    def __init__(self, bus: Bus, router: rpc.Served) -> None:
        self._bus = bus
        self.router = router

    async def change(self, *rows: dict[str, Any], dry_run: bool = False) -> rate_rows.RatesAdded:
        rates = [{"pattern": "llm/a", "input": "0.1", "output": "0.2", **row} for row in rows]
        wanted = rate_rows.RatesChange.model_validate({"rates": rates, "dry_run": dry_run, "changed_by": "did:admin"})
        return await self._ask(rate_rows.RATES_CHANGE, wanted, rate_rows.RatesAdded)

    async def one(self, **row: Any) -> rate_rows.FoundRate:
        added = await self.change(row)
        assert added.errors == ()
        (rate,) = added.rates
        return rate

    async def remove(self, pattern: str = "llm/a", **more: Any) -> rate_rows.RateRemoved:
        wanted = rate_rows.RatesRemove(pattern=pattern, changed_by="did:admin", **more)
        return await self._ask(rate_rows.RATES_REMOVE, wanted, rate_rows.RateRemoved)

    async def find(self, *wanted: tuple[str, tuple[str, ...], bool], **more: Any) -> rate_rows.RatesFound:
        conditions = [{"field": field, "values": values, "part": part} for field, values, part in wanted]
        asked = rate_rows.RatesFind.model_validate({"wanted": conditions, **more})
        return await self._ask(rate_rows.RATES_FIND, asked, rate_rows.RatesFound)

    async def get(self, rate_id: str) -> rate_rows.FoundRate:
        return await self._ask(rate_rows.RATE_GET, rate_rows.RateGet(rate_id=rate_id), rate_rows.FoundRate)

    async def set(self, **rate: Any) -> q.RateView:
        wanted = rate_changes.RatesSet.model_validate({"pattern": "llm/a", "input": "0.1", "output": "0.2", **rate})
        return await self._ask(rate_changes.RATES_SET, wanted, q.RateView)

    async def history(self, pattern: str = "llm/a") -> tuple[rate_changes.RateVersion, ...]:
        wanted = rate_changes.RatesHistory(pattern=pattern)
        return (await self._ask(rate_changes.RATES_HISTORY, wanted, rate_changes.RateVersions)).versions

    async def sync(self, **more: Any) -> rate_changes.RatesChanged:
        wanted = rate_changes.RatesSync.model_validate({"changed_by": "did:admin", **more})
        return await self._ask(rate_changes.RATES_SYNC, wanted, rate_changes.RatesChanged)

    async def margin(self, percent: str) -> rate_changes.RatesChanged:
        wanted = rate_changes.RatesMargin(margin_percent=percent)
        return await self._ask(rate_changes.RATES_MARGIN, wanted, rate_changes.RatesChanged)

    async def in_force(self) -> dict[Keyed, q.RateView]:
        page = await self._ask(rate_changes.RATES_LIST, rate_changes.RatesList(), rate_changes.RatesPage)
        return {(rate.pattern, rate.type): rate for rate in page.rates if rate.source != "demo"}

    async def price(self, pattern: str = "llm/a") -> str | None:
        rate = (await self.in_force()).get((pattern, RateType.CHAT))
        return None if rate is None else rate.input

    async def _ask(self, method: str, request: BaseModel, reply: type[A]) -> A:
        return await ask(self._bus, q.SERVICE, method, request, reply, 30.0)


@pytest.fixture
async def desk(catalogs: CatalogRig, monkeypatch: pytest.MonkeyPatch) -> Desk:
    async def read(_providers: Sequence[str]) -> PackagePrices:
        rate = PackageRate(pattern="llm/packaged", input="0.7", output="0.7")
        return PackagePrices(version="1", rates=(rate,), models={"llm": ()})

    monkeypatch.setattr(package, "read", read)
    providers = {name: {"base_url": "https://llm.example.com", "models": "a"} for name in ("llm", "other")}
    router = await catalogs.router(providers=providers)
    return Desk(await catalogs.connect(permissions.OPERATOR), router)


def refused(error: pytest.ExceptionInfo[HubError]) -> tuple[ErrorCode, str | None]:
    return error.value.code, error.value.param


def problems(added: rate_rows.RatesAdded) -> list[tuple[int, ErrorCode, str | None]]:
    assert added.rates == ()
    return [(error.index, error.code, error.param) for error in added.errors]


@pytest.mark.parity(108, 114)
async def test_a_removed_rate_has_no_price_from_then_on_and_keeps_its_history(desk: Desk) -> None:
    made = await desk.one()
    removed = await desk.remove(expected_version=made.version)
    assert (removed.version > made.version, removed.now) == (True, None)
    assert (await desk.price(), (await desk.find()).count) == (None, 2)  # the package's and the demonstration's
    assert all(rate.pattern != "llm/a" for rate in desk.router.catalog.snapshot().rates)
    gone, first = await desk.history()
    assert (gone.removed, gone.version, gone.changed_by) == (True, removed.version, "did:admin")
    assert (first.removed, first.rate_id, first.input) == (False, made.rate_id, "0.1")
    for again in (desk.remove(), desk.get(made.rate_id), desk.get("nonsense"), desk.remove("llm/never")):
        with pytest.raises(HubError) as error:
            await again
        assert error.value.code == ErrorCode.NOT_FOUND
    back = await desk.one(input="0.3")
    assert (await desk.price(), len(await desk.history())) == ("0.3", 3)
    await desk.remove(expected_version=back.version)
    assert (await desk.set(input="0.4", expected_version=0)).input == "0.4"


async def test_after_a_removal_a_broader_rate_or_the_package_counts(desk: Desk) -> None:
    await desk.set(pattern="llm/*", input="5")
    made = await desk.one()
    assert (await desk.remove(expected_version=made.version)).now == (await desk.in_force())["llm/*", RateType.CHAT]
    await desk.remove("llm/*")
    packaged = await desk.one(pattern="llm/packaged")
    removed = await desk.remove("llm/packaged", expected_version=packaged.version)
    assert removed.now is not None
    assert (removed.now.version, removed.now.input) == (0, "0.7")
    with pytest.raises(HubError, match="built in") as built_in:
        await desk.remove("llm/packaged")
    assert refused(built_in) == (ErrorCode.CONFLICT, "pattern")


async def happened(catalogs: CatalogRig, *versions: tuple[int, str, bool]) -> None:
    """As if these versions of one rate had been added long ago: input rate, begin, whether removed; all have begun."""
    for price, at, removed in versions:
        await catalogs.books.execute(
            "with next as (update catalog.revision set revision = revision + 1 returning revision) "
            "insert into catalog.rate (revision, pattern, input, output, effective_at, removed) "
            "select revision, 'llm/a', $1::int, 1, $2::text::timestamptz, $3 from next",
            price,
            at,
            removed,
        )


async def test_a_removal_makes_void_what_was_planned_before_it(desk: Desk, catalogs: CatalogRig) -> None:
    await happened(catalogs, (1, "2026-01-01", False), (2, "2026-03-01", False), (1, "2026-02-01", True))
    await desk.one(pattern="llm/b")  # whoever adds a version reads them all
    assert (await desk.price("llm/b"), await desk.price()) == ("0.1", None)
    await happened(catalogs, (3, "2026-02-01", False))
    await desk.one(pattern="llm/c")
    assert await desk.price() == "3"


async def test_a_planned_removal_begins_whatever_was_set_meanwhile(desk: Desk, catalogs: CatalogRig) -> None:
    await happened(catalogs, (1, "2026-01-01", False), (1, "2026-03-01", True), (2, "2026-02-01", False))
    await desk.one(pattern="llm/b")
    assert await desk.price() is None
    await happened(catalogs, (3, "2026-03-01", False))
    await desk.one(pattern="llm/c")
    assert await desk.price() == "3", "whoever sets a rate for the same moment withdraws the removal"


async def test_a_rate_that_will_be_removed_counts_until_then(desk: Desk) -> None:
    made = await desk.one()
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    removed = await desk.remove(expected_version=made.version, effective_at=later)
    assert removed.now is not None
    assert (removed.now.version, removed.effective_at[:19], await desk.price()) == (made.version, later[:19], "0.1")
    assert problems(await desk.change({"input": "0.3"})) == [(0, ErrorCode.CONFLICT, "expected_version")]
    await desk.one(input="0.3", expected_version=removed.version)
    assert await desk.price() == "0.3"


async def test_what_is_only_planned_can_be_taken_away(desk: Desk) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    planned = await desk.one(effective_at=later)
    assert (await desk.price(), (await desk.get(planned.rate_id)).version) == (None, planned.version)
    await desk.remove(expected_version=planned.version)
    assert [version.removed for version in await desk.history()] == [True, False]
    for wrong in ("2020-01-01T00:00:00Z", "soon"):
        with pytest.raises(HubError) as error:
            await desk.remove(effective_at=wrong)
        assert refused(error) == (ErrorCode.INVALID_REQUEST, "effective_at")


@pytest.mark.parity(108)
async def test_a_batch_is_done_whole_or_not_at_all_and_says_what_is_wrong_where(
    desk: Desk, catalogs: CatalogRig
) -> None:
    old = await desk.one(pattern="llm/old")
    wrong = await desk.change(
        {"pattern": "llm/fine"},
        {"pattern": "llm/old"},
        {"pattern": "nobody/a"},
        {"pattern": "llm/past", "effective_at": "2020-01-01T00:00:00Z"},
        {"pattern": "llm/fine"},
        {"pattern": "llm/long", "output": "0.123456789012345678901"},
        {"pattern": "llm/gone", "expected_version": 7},
        {"pattern": "llm/"},
        {"pattern": "llm/costs", "unit_costs": {"input": "1E-5", "output": "1"}},
        {"pattern": "llm/tier", "tiers": [{"above": 1, "input": "0.01", "output": "9"}]},
    )
    assert problems(wrong) == [
        (1, ErrorCode.CONFLICT, "expected_version"),
        (2, ErrorCode.NOT_FOUND, "provider"),
        (3, ErrorCode.INVALID_REQUEST, "effective_at"),
        (4, ErrorCode.INVALID_REQUEST, "pattern"),
        (5, ErrorCode.INVALID_REQUEST, "output"),
        (6, ErrorCode.CONFLICT, "expected_version"),
        (7, ErrorCode.INVALID_REQUEST, "pattern"),
        (8, ErrorCode.INVALID_REQUEST, "input"),
        (9, ErrorCode.INVALID_REQUEST, "tiers.0.input"),
    ]
    count = "select count(*) from catalog.rate"
    assert await catalogs.books.fetchval(count) == 1
    rows = ({"pattern": "llm/new"}, {"pattern": "llm/old", "input": "0.9", "expected_version": old.version})
    assert await desk.change(*rows, dry_run=True) == rate_rows.RatesAdded()
    assert await catalogs.books.fetchval(count) == 1
    done = await desk.change(*rows)
    assert [(rate.pattern, rate.input) for rate in done.rates] == [("llm/new", "0.1"), ("llm/old", "0.9")]
    kinds = [(await desk.history(name))[0].change_type for name in ("llm/new", "llm/old")]
    assert kinds == ["bulk_create", "bulk_update"]


async def test_of_two_batches_at_once_the_second_changes_nothing(desk: Desk) -> None:
    first, second = (await desk.change({"pattern": "llm/a"}, {"pattern": "llm/b"})).rates
    changes = [
        desk.change(
            {"pattern": "llm/a", "input": price, "expected_version": first.version},
            {"pattern": f"llm/{price}"},
            {"pattern": "llm/b", "input": price, "expected_version": second.version},
        )
        for price in ("1", "2")
    ]
    won, lost = sorted(await asyncio.gather(*changes), key=lambda added: len(added.errors))
    assert problems(lost) == [(0, ErrorCode.CONFLICT, "expected_version"), (2, ErrorCode.CONFLICT, "expected_version")]
    price = won.rates[0].input
    assert {name for name, _ in await desk.in_force()} == {"llm/a", "llm/b", f"llm/{price}", "llm/packaged"}
    assert (await desk.price("llm/a"), await desk.price("llm/b")) == (price, price)


async def test_a_model_has_a_rate_for_each_kind_of_calls_and_chat_sees_only_its_own(desk: Desk) -> None:
    about = {"display": "Painter", "description": "Bilder für alle", "features": ["vision"], "images": {"max": 4}}
    image = await desk.one(type="imageGeneration", output="3", about=about)
    chat = await desk.one()
    assert set(await desk.in_force()) >= {("llm/a", "imageGeneration"), ("llm/a", RateType.CHAT)}
    served = [rate for rate in desk.router.catalog.snapshot().rates if rate.pattern == "llm/a"]
    assert [rate.rate_id for rate in served] == [chat.rate_id]
    assert problems(await desk.change({"type": "imageGeneration"})) == [(0, ErrorCode.CONFLICT, "expected_version")]
    cheaper = await desk.one(type="imageGeneration", output="2", expected_version=image.version)
    assert (cheaper.about, cheaper.about is not None) == (image.about, True)
    removed = await desk.remove(type="imageGeneration", expected_version=cheaper.version)
    assert (removed.now, await desk.price()) == (None, "0.1")
    assert (await desk.get(chat.rate_id)).version == chat.version


async def test_rates_are_found_by_what_they_are_for_and_page_by_page(desk: Desk) -> None:
    await desk.change(
        *({"pattern": f"llm/m{number}"} for number in range(3)),
        {"pattern": "other/M1", "type": "embedding", "about": {"description": "a Word", "display": "Em"}},
    )
    everything = await desk.find(("provider", ("llm", "other"), False))
    assert everything.count == 5
    assert [rate.pattern for rate in everything.rates] == ["llm/m0", "llm/m1", "llm/m2", "llm/packaged", "other/M1"]
    second = await desk.find(("provider", ("llm",), False), page=2, page_size=2, descending=True)
    assert (second.count, [rate.pattern for rate in second.rates]) == (4, ["llm/m1", "llm/m0"])
    for field, value, part, found in (
        ("model", "m1", True, ["llm/m1", "other/M1"]),
        ("model", "m1", False, ["llm/m1"]),
        ("type", "embedding", False, ["other/M1"]),
        ("description", "word", True, ["other/M1"]),
        ("display", "Em", False, ["other/M1"]),
        ("model", "nothing", True, []),
    ):
        page = await desk.find((field, (value,), part))
        assert [rate.pattern for rate in page.rates] == found, (field, value)
    out = await desk.one(pattern="llm/out", deprecated=True)
    assert (await desk.find(("model", ("out",), False))).count == 0
    assert (await desk.find(("model", ("out",), False), deprecated=True)).rates == (out,)
    (packaged,) = (await desk.find(("model", ("packaged",), False))).rates
    assert (await desk.get(packaged.rate_id)).input == "0.7"


@pytest.mark.parity(110)
async def test_rates_set_with_their_unit_costs_follow_a_margin_and_no_package(desk: Desk) -> None:
    costs = {"input": "0.5", "output": "1"}
    made = await desk.one(pattern="llm/packaged", unit_costs=costs)
    plain = await desk.one(pattern="llm/plain")
    assert made.costs == q.Values(input="0.5", output="1")
    assert (await desk.sync()).unchanged == 1
    assert (await desk.margin("20")).updated == 1
    rate = (await desk.find(("model", ("packaged",), False))).rates[0]
    assert (rate.input, rate.output, rate.margin_percent) == ("0.6000000000", "1.2000000000", "20")
    assert await desk.price("llm/plain") == plain.input
    kept = await desk.one(pattern="llm/packaged", input="2", expected_version=rate.version)
    assert kept.costs == made.costs


@pytest.mark.parity(110)
async def test_costs_that_somebody_names_become_rates_first_tried_dry(desk: Desk, catalogs: CatalogRig) -> None:
    costs = [
        {"pattern": "llm/a", "input": "0.1", "output": "0.2", "cache_read": "0.01"},
        {"pattern": "nobody/a", "input": "0.1", "output": "0.2"},
    ]
    tried = await desk.sync(costs=costs, margin_percent="10", dry_run=True)
    assert await catalogs.books.fetchval("select count(*) from catalog.rate") == 0
    done = await desk.sync(costs=costs, margin_percent="10")
    assert (done.created, done.changes, done.errors) == (1, tried.changes, ("No provider 'nobody' is configured.",))
    rate = (await desk.in_force())["llm/a", RateType.CHAT]
    assert (rate.input, rate.cache_read, rate.source) == ("0.1100000000", "0.0110000000", "given")
    gone = await desk.sync(costs=[{**costs[0], "pattern": "llm/b"}], deprecate_unmatched=True)
    assert (gone.created, gone.deprecated, gone.unmatched) == (1, 1, ("llm/a",))
    assert (await desk.in_force())["llm/a", RateType.CHAT].deprecated
    for wrong, param in (([costs[0]] * 2, "costs.1.pattern"), ([{**costs[0], "output": "1E-7"}], "costs.0.output")):
        with pytest.raises(HubError) as error:
            await desk.sync(costs=wrong)
        assert refused(error) == (ErrorCode.INVALID_REQUEST, param)
