"""The catalog on real servers: rates in Postgres, changes on the bus, answers from memory."""

import asyncio

import asyncpg
import pytest
from rig.catalogs import CatalogRig
from rig.waiting import until

from contracts import permissions, streams, subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import SERVICE, SNAPSHOT, CatalogChanged, RateView, Snapshot, SnapshotGet
from contracts.rpc.rate_changes import RATES_LIST, RATES_SET, RatesList, RatesPage, RatesSet
from provider_router.catalog import catalog as catalog_module
from runtime.bus import Bus
from runtime.rpc import ask

KEY = "sk-of-a-provider"
WRONG = [
    ("pattern", "no-slash"),
    ("pattern", "Upper/x"),
    ("pattern", "a/*b*c*d*e*"),
    ("input", "NaN"),
    ("input", "-1"),
    ("output", "1e-7"),
    ("output", "0." + "0" * 30 + "1"),
    ("cache_read", "Infinity"),
    ("cache_write", "٣"),
    ("request", "1_000"),
    ("reasoning", ""),
]


def rate(pattern: str = "llm/*", price: str = "0.0000025") -> RatesSet:
    return RatesSet(pattern=pattern, input=price, output="0.00001", changed_by="did:operator")


async def set_rate(bus: Bus, question: RatesSet) -> RateView:
    return await ask(bus, SERVICE, RATES_SET, question, RateView)


async def snapshot(bus: Bus) -> Snapshot:
    return await ask(bus, SERVICE, SNAPSHOT, SnapshotGet(), Snapshot)


async def test_a_first_snapshot_has_the_demonstration_provider_and_its_price(catalogs: CatalogRig) -> None:
    await catalogs.router()
    seen = await snapshot(await catalogs.connect(permissions.GATEWAY))
    assert [(provider.name, provider.kind, provider.models) for provider in seen.providers] == [
        ("demo", "demo", ("echo",))
    ]
    assert [(found.pattern, found.source) for found in seen.rates] == [("demo/*", "demo")]


async def test_a_configured_provider_is_mirrored_and_announced_without_its_key(catalogs: CatalogRig) -> None:
    await catalogs.router()
    gateway = await catalogs.connect(permissions.GATEWAY)
    before = await snapshot(gateway)
    await catalogs.router(
        OPENAI_API_KEY=KEY, providers={"llm": {"base_url": "https://llm.example.com", "api_key": KEY, "models": "a,b"}}
    )
    rows = await catalogs.books.fetch("select name, kind, models, active from catalog.provider order by name")
    assert [tuple(row) for row in rows] == [
        ("demo", "demo", ["echo"], True),
        ("llm", "openai", ["a", "b"], True),
        ("openai", "openai", None, True),
    ]
    assert await catalogs.books.fetchval("select revision from catalog.revision") == before.revision + 1
    everything = await catalogs.books.fetchval("select string_agg(provider::text, '') from catalog.provider")
    assert KEY not in everything + (await snapshot(gateway)).model_dump_json()


async def test_a_start_with_the_same_configuration_is_no_change(catalogs: CatalogRig) -> None:
    await catalogs.router()
    revision = await catalogs.books.fetchval("select revision from catalog.revision")
    await catalogs.router()
    assert await catalogs.books.fetchval("select revision from catalog.revision") == revision


async def test_a_provider_that_is_configured_no_more_is_marked(catalogs: CatalogRig) -> None:
    await catalogs.router(providers={"llm": {"base_url": "https://llm.example.com"}})
    await catalogs.router()
    rows = await catalogs.books.fetch("select name, active from catalog.provider order by name")
    assert [tuple(row) for row in rows] == [("demo", True), ("llm", False)]


async def test_known_models_have_prices_from_the_package(catalogs: CatalogRig) -> None:
    served = await catalogs.router(OPENAI_API_KEY=KEY)
    seen = served.catalog.snapshot()
    prices = {found.pattern: found for found in seen.rates}
    assert prices["openai/gpt-4o-mini"].input == "0.00000015"
    assert prices["openai/gpt-4o-mini"].source.startswith("genai-prices ")
    listed = next(provider.models for provider in seen.providers if provider.name == "openai")
    assert listed is not None
    assert "gpt-4o-mini" in listed
    assert len(seen.model_dump_json()) < 200_000


async def test_a_rate_is_in_force_at_once_and_its_history_is_kept(catalogs: CatalogRig) -> None:
    await catalogs.router()
    operator = await catalogs.connect(permissions.OPERATOR)
    first = await set_rate(operator, rate(price="0.1"))
    second = await set_rate(operator, rate(price="0.0000000000012345"))
    assert (second.input, second.source) == ("0.0000000000012345", "operator")
    assert first.rate_id != second.rate_id

    page = await ask(operator, SERVICE, RATES_LIST, RatesList(pattern="llm"), RatesPage)
    assert [found.rate_id for found in page.rates] == [second.rate_id]
    rows = await catalogs.books.fetch("select input::text, changed_by from catalog.rate order by revision")
    assert [tuple(row) for row in rows] == [("0.1", "did:operator"), ("0.0000000000012345", "did:operator")]


async def test_a_rate_row_is_never_changed_or_removed(catalogs: CatalogRig) -> None:
    await catalogs.router()
    await set_rate(await catalogs.connect(permissions.OPERATOR), rate())
    for statement in ("update catalog.rate set input = 0", "delete from catalog.rate"):
        with pytest.raises(asyncpg.RaiseError, match="only added"):
            await catalogs.books.execute(statement)


async def test_the_routers_role_can_neither_change_history_nor_read_other_schemas(catalogs: CatalogRig) -> None:
    connection = await asyncpg.connect(catalogs.settings().database_url.get_secret_value())
    for statement in (
        "update catalog.rate set input = 0",
        "delete from catalog.rate",
        "truncate catalog.rate",
        "delete from catalog.revision",
        "delete from catalog.provider",
        "create table catalog.mine (id text)",
        "select * from metering.account",
        "select * from identity.access_key",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_a_rate_that_is_none_is_refused_with_its_field(catalogs: CatalogRig) -> None:
    await catalogs.router()
    operator = await catalogs.connect(permissions.OPERATOR)
    for field, value in WRONG:
        fields = {**rate().model_dump(), field: value}
        with pytest.raises(HubError) as refused:
            await set_rate(operator, RatesSet.model_construct(**fields))
        assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_REQUEST, field)
    assert await catalogs.books.fetchval("select count(*) from catalog.rate") == 0


async def test_a_change_is_published_and_its_revision_lies_in_the_bucket(catalogs: CatalogRig) -> None:
    await catalogs.router()
    gateway, operator = await catalogs.connect(permissions.GATEWAY), await catalogs.connect(permissions.OPERATOR)
    heard: asyncio.Queue[int] = asyncio.Queue()
    await gateway.listen(
        subjects.CATALOG_CHANGED,
        lambda _subject, _reply, payload, _headers: heard.put_nowait(
            CatalogChanged.model_validate_json(payload).revision
        ),
    )
    await gateway.flush()
    await set_rate(operator, rate())
    revision = await catalogs.books.fetchval("select revision from catalog.revision")
    assert await asyncio.wait_for(heard.get(), 5) == revision
    bucket = await gateway.jetstream().key_value(streams.REVISIONS.name)

    async def there() -> bool:
        return bool(int((await bucket.get("catalog")).value or b"0") == revision)

    await until(there)


async def test_whoever_hears_of_a_change_is_not_answered_with_what_was_before(catalogs: CatalogRig) -> None:
    await catalogs.router()
    await catalogs.router()
    gateway, operator = await catalogs.connect(permissions.GATEWAY), await catalogs.connect(permissions.OPERATOR)
    for number in range(1, 11):
        await set_rate(operator, rate(price=f"0.{number:02}"))
        answers = await asyncio.gather(*(snapshot(gateway) for _ in range(4)))
        assert {answer.rates[0].input for answer in answers} == {f"0.{number:02}"}


async def test_rates_set_at_the_same_time_all_count_in_one_order(catalogs: CatalogRig) -> None:
    await catalogs.router()
    served = await catalogs.router()
    operator = await catalogs.connect(permissions.OPERATOR)
    set_rates = await asyncio.gather(*(set_rate(operator, rate(price=f"0.{n:02}")) for n in range(1, 21)))
    rows = await catalogs.books.fetch("select id::text, revision from catalog.rate order by revision")
    assert {row["id"] for row in rows} >= {found.rate_id for found in set_rates}
    assert len({row["revision"] for row in rows}) == 20

    async def latest() -> bool:
        return bool(served.catalog.snapshot().rates[0].rate_id == rows[-1]["id"])

    await until(latest)


async def test_a_lost_message_is_noticed_by_its_revision(catalogs: CatalogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "_COMPARE_EVERY_S", 0.05)
    served = await catalogs.router()
    await catalogs.books.execute(
        "with next as (update catalog.revision set revision = revision + 1 returning revision)"
        " insert into catalog.rate (revision, pattern, input, output) select revision, 'llm/*', 7, 7 from next"
    )

    async def noticed() -> bool:
        return served.catalog.snapshot().rates[0].input == "7"

    await until(noticed)


async def test_while_the_database_is_away_the_snapshot_comes_from_memory(own_catalogs: CatalogRig) -> None:
    await own_catalogs.router()
    gateway, operator = (
        await own_catalogs.connect(permissions.GATEWAY),
        await own_catalogs.connect(permissions.OPERATOR),
    )
    await set_rate(operator, rate())
    before = await snapshot(gateway)
    await own_catalogs.servers.kill("postgres")
    assert await snapshot(gateway) == before
    with pytest.raises(HubError) as refused:
        await set_rate(operator, rate(price="9"))
    assert refused.value.code is ErrorCode.SERVICE_UNAVAILABLE

    await own_catalogs.servers.start("postgres")
    assert (await set_rate(operator, rate(price="9"))).input == "9"
    assert (await snapshot(gateway)).rates[0].input == "9"


async def test_rates_that_were_never_read_are_not_guessed(catalogs: CatalogRig) -> None:
    bus, gateway = await catalogs.connect(permissions.ROUTER), await catalogs.connect(permissions.GATEWAY)
    nowhere = "postgresql://provider_router:x@127.0.0.1:1/hub"
    async with catalogs.opening(bus, database_url=nowhere) as served:
        with pytest.raises(HubError) as refused:
            await snapshot(gateway)
        assert refused.value.code is ErrorCode.SERVICE_UNAVAILABLE
        assert not await served.ready()
