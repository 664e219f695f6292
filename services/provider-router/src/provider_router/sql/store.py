"""Statements on schema `catalog`: providers and rate versions."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from contracts.errors import ErrorCode, HubError
from contracts.usage import RateType
from provider_router.catalog.providers import Provider
from provider_router.sql.rate_rows import NewRate, RateRow, columns, from_record
from runtime.postgres import Pool

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_REVISION: Final = "select revision from catalog.revision"
_NEXT: Final = """
update catalog.revision set revision = revision + $1, changed_at = now(), begun_at = clock_timestamp()
 where revision = $2 or $2 is null returning revision, begun_at
"""
_COLUMNS: Final = """
       id::text as rate_id, revision as version, pattern, input, output, cache_read, cache_write, cache_write_1h,
       reasoning, request, tiers, pieces, source, effective_at, change_type, changed_by, changed_at, costs,
       cost_source, cost_at, margin, type, about, removed
"""
# Whether a rate is deprecated is what was said last, also when an earlier change of it begins later. A removal that has
# begun makes void whatever was said before it.
_IN_FORCE: Final = f"""
with begun as (
    select *, first_value(deprecated) over (partition by pattern, type order by revision desc) as is_deprecated,
           max(revision) filter (where removed) over (partition by pattern, type) as void_before
      from catalog.rate where effective_at <= clock_timestamp()),
newest as (
    select distinct on (pattern, type) * from begun where revision >= coalesce(void_before, 0)
     order by pattern, type, effective_at desc, revision desc)
select {_COLUMNS}, is_deprecated as deprecated from newest where not removed order by pattern, type
"""  # noqa: S608 - our own words only
_BEGINS: Final = """
select extract(epoch from min(effective_at) - clock_timestamp())::float8
  from catalog.rate r
 where effective_at > clock_timestamp()
   and not exists (
       select from catalog.rate later
        where later.pattern = r.pattern and later.type = r.type and later.removed and later.revision > r.revision
          and later.effective_at <= clock_timestamp())
"""
_BEGUN: Final = """
update catalog.revision set revision = revision + 1, changed_at = now(), begun_at = clock_timestamp()
 where exists (select from catalog.rate where effective_at > begun_at and effective_at <= clock_timestamp())
returning revision
"""
_HISTORY: Final = f"""
select {_COLUMNS}, deprecated
  from catalog.rate where (pattern = $1 or $1 is null) and (revision < $2 or $2 is null)
 order by revision desc limit $3
"""  # noqa: S608 - our own words only
_BEFORE: Final = f"""
select v.version as of_version, {_COLUMNS.replace("revision as version", "p.revision as version")}, deprecated
  from unnest($1::bigint[], $2::text[], $3::text[]) as v(version, of_pattern, of_type)
 cross join lateral (
       select * from catalog.rate r
        where r.pattern = v.of_pattern and r.type = v.of_type and r.revision < v.version
        order by r.revision desc limit 1) p
"""  # noqa: S608 - our own words only
_HAS_CHANGED: Final = "select exists (select from catalog.rate where changed_by = $1)"
_LATEST: Final = """
select revision, removed and effective_at <= clock_timestamp() as is_gone
  from catalog.rate where pattern = $1 and type = $2 order by revision desc limit 1
"""
_NEWEST: Final = f"""
select {_COLUMNS}, deprecated from catalog.rate where pattern = $1 and type = $2 order by revision desc limit 1
"""  # noqa: S608 - our own words only
_BY_ID: Final = f"select {_COLUMNS}, deprecated from catalog.rate where id = $1"  # noqa: S608 - our own words only
_ADD: Final = """
insert into catalog.rate (revision, pattern, input, output, cache_read, cache_write, cache_write_1h, reasoning, request,
                          tiers, pieces, source, effective_at, change_type, changed_by, deprecated, costs, cost_source,
                          cost_at, margin, type, about, removed)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)
returning id::text, changed_at
"""
_MIRROR: Final = """
insert into catalog.provider (name, kind, base_url, models, weight, active) values ($1, $2, $3, $4, $5, true)
on conflict (name) do update
   set kind = excluded.kind, base_url = excluded.base_url, models = excluded.models, weight = excluded.weight,
       active = true, configured_at = now()
 where (provider.kind, provider.base_url, provider.models, provider.weight, provider.active)
       is distinct from (excluded.kind, excluded.base_url, excluded.models, excluded.weight, true)
"""
_GONE: Final = "update catalog.provider set active = false, configured_at = now() where active and name <> all ($1)"
_CONFIGURED: Final = """
update catalog.revision set revision = revision + 1, configuration = $1, changed_at = now()
 where configuration <> $1 returning revision
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database knows at one revision."""

    revision: int
    rates: tuple[RateRow, ...]
    begins_in_s: float | None = None
    """Seconds until the next version begins; None = none is planned."""


@dataclass(frozen=True, slots=True)
class Added:
    """Versions that were added."""

    revision: int
    rows: tuple[RateRow, ...]


class Store:
    """The catalog's tables. Every method raises `asyncpg` errors as they come."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def revision(self) -> int:
        """The number of the latest change."""
        revision: int = await self._pool.fetchval(_REVISION)
        return revision

    async def begun(self) -> int | None:
        """Take a revision when a planned version has begun and no router has said so yet; None = nothing began."""
        revision: int | None = await self._pool.fetchval(_BEGUN)
        return revision

    async def read(self) -> Stored:
        """Revision and rates in force, as of one moment."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            revision: int = await connection.fetchval(_REVISION)
            rows = await connection.fetch(_IN_FORCE)
            begins_in_s: float | None = await connection.fetchval(_BEGINS)
        rates = await asyncio.to_thread(_from_records, rows)  # a thousand take as long as many calls
        return Stored(revision, rates, begins_in_s)

    async def history(
        self, pattern: str | None, before: int | None, limit: int
    ) -> list[tuple[RateRow, RateRow | None]]:
        """Versions, newest first, each with the one of its pattern before it."""
        rows = await self._pool.fetch(_HISTORY, pattern, before, limit)
        keys = ([row[name] for row in rows] for name in ("version", "pattern", "type"))
        earlier = await self._pool.fetch(_BEFORE, *keys)
        previous = {row["of_version"]: from_record(row) for row in earlier}
        return [(from_record(row), previous.get(row["version"])) for row in rows]

    async def by_id(self, rate_id: str) -> RateRow | None:
        """The version with this id; None = there is none, or its rate has been removed."""
        try:
            wanted = UUID(rate_id)
        except ValueError:
            return None
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_BY_ID, wanted)
            if row is None or (await _latest(connection, row["pattern"], row["type"]))[1]:
                return None
        return from_record(row)

    async def newest(self, pattern: str, type_: RateType) -> RateRow | None:
        """What was said last about a rate, begun or not; None = nothing, or that it is removed."""
        row = await self._pool.fetchrow(_NEWEST, pattern, type_)
        return None if row is None or row["removed"] else from_record(row)

    async def latest(self, keys: Iterable[tuple[str, RateType]]) -> dict[tuple[str, RateType], int]:
        """The latest versions of these rates, begun or not; those that have been removed are left out."""
        async with self._pool.acquire() as connection:
            found = {key: await _latest(connection, *key) for key in keys}
        return {key: version for key, (version, is_gone) in found.items() if version and not is_gone}

    async def has_changed(self, changed_by: str) -> bool:
        """Whether somebody of this name has ever changed a rate."""
        return bool(await self._pool.fetchval(_HAS_CHANGED, changed_by))

    async def add_rates(self, rates: Sequence[NewRate], *, based_on: int | None = None) -> Added:
        """Add versions, all or none; those without a time are in force from the commit on.

        Args:
            rates: at least one.
            based_on: the revision from which they were computed; None = they depend on nothing.

        Raises:
            HubError: `conflict`, something changed meanwhile.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            return await add_rates(connection, rates, based_on)

    async def configured(self, providers: Sequence[Provider], configuration: str) -> int | None:
        """Mirror this router's providers; a new configuration is a change and takes a revision.

        Args:
            providers: all of this router.
            configuration: digest of everything in a snapshot that does not come from the database.

        Returns:
            The new revision; None = nothing is new.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            revision: int | None = await connection.fetchval(_CONFIGURED, configuration)
            for provider in providers:
                models = None if provider.models is None else list(provider.models)
                await connection.execute(
                    _MIRROR, provider.name, provider.kind, provider.base_url, models, provider.weight
                )
            await connection.execute(_GONE, [provider.name for provider in providers])
        return revision


def _from_records(rows: "Sequence[asyncpg.Record]") -> tuple[RateRow, ...]:
    return tuple(from_record(row) for row in rows)


async def add_rates(connection: "Connection", rates: Sequence[NewRate], based_on: int | None = None) -> Added:
    """As `Store.add_rates`, within the caller's transaction."""
    next_one = await connection.fetchrow(_NEXT, len(rates), based_on)
    if next_one is None:
        raise HubError(ErrorCode.CONFLICT, "Rates were changed meanwhile; look at them again and repeat.")
    rows = []
    for version, rate in enumerate(rates, next_one["revision"] - len(rates) + 1):
        if rate.expected_version is not None:
            latest, is_gone = await _latest(connection, rate.pattern, rate.type)
            if rate.expected_version not in ({latest, 0} if is_gone else {latest}):
                raise changed_meanwhile(rate.pattern, latest, rate.expected_version)
        rows.append(await _added(connection, version, rate, next_one["begun_at"]))
    return Added(next_one["revision"], tuple(rows))


def changed_meanwhile(pattern: str, latest: int, expected: int) -> HubError:
    """What whoever comes second is told."""
    return HubError(
        ErrorCode.CONFLICT,
        f"The rates of {pattern} are at version {latest}, not {expected}: somebody changed them meanwhile. Look at "
        "them again and repeat with that version.",
        param="expected_version",
    )


async def _latest(connection: "Connection", pattern: str, type_: RateType) -> tuple[int, bool]:
    """A rate's latest version, 0 = it has none, and whether that one has removed it."""
    row = await connection.fetchrow(_LATEST, pattern, type_)
    return (0, False) if row is None else (row["revision"], row["is_gone"])


async def _added(connection: "Connection", version: int, rate: NewRate, now: datetime) -> RateRow:
    (row,) = await connection.fetch(_ADD, version, *columns(rate, rate.effective_at or now))
    return RateRow(
        rate_id=row["id"],
        version=version,
        pattern=rate.pattern,
        values=rate.values,
        source=rate.source,
        effective_at=rate.effective_at or now,
        deprecated=rate.deprecated,
        change_type=rate.change_type,
        changed_by=rate.changed_by,
        changed_at=row["changed_at"],
        costs=rate.costs,
        cost_source=rate.cost_source,
        cost_at=rate.cost_at,
        margin=rate.margin,
        type=rate.type,
        about=rate.about,
        removed=rate.removed,
    )
