"""Statements on schema `catalog`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from provider_router.catalog.providers import Provider
from runtime.postgres import Pool

_REVISION: Final = "select revision from catalog.revision"
_NEXT: Final = "update catalog.revision set revision = revision + 1, changed_at = now() returning revision"
_IN_FORCE: Final = """
select distinct on (pattern)
       id::text as rate_id, pattern, input, output, cache_read, cache_write, reasoning, request, source, effective_at
  from catalog.rate order by pattern, revision desc
"""
_ADD: Final = """
insert into catalog.rate (revision, pattern, input, output, cache_read, cache_write, reasoning, request, changed_by)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
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
class RateRow:
    """A rate that an operator set: credits per unit, exactly as they were given."""

    rate_id: str
    pattern: str
    input: Decimal
    output: Decimal
    cache_read: Decimal | None
    cache_write: Decimal | None
    reasoning: Decimal | None
    request: Decimal
    source: str
    effective_at: datetime


@dataclass(frozen=True, slots=True)
class NewRate:
    """A rate about to be added."""

    pattern: str
    input: Decimal
    output: Decimal
    cache_read: Decimal | None
    cache_write: Decimal | None
    reasoning: Decimal | None
    request: Decimal
    changed_by: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database knows at one revision."""

    revision: int
    rates: tuple[RateRow, ...]


class Store:
    """The catalog's tables. Every method raises `asyncpg` errors as they come."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def revision(self) -> int:
        """The number of the latest change."""
        revision: int = await self._pool.fetchval(_REVISION)
        return revision

    async def read(self) -> Stored:
        """Revision and rates in force, as of one moment."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            revision: int = await connection.fetchval(_REVISION)
            rows = await connection.fetch(_IN_FORCE)
        return Stored(revision, tuple(RateRow(**dict(row)) for row in rows))

    async def add_rate(self, rate: NewRate) -> int:
        """Add a version of a pattern's rates, in force from the commit on.

        Returns:
            The new revision.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            revision: int = await connection.fetchval(_NEXT)
            await connection.execute(
                _ADD,
                revision,
                rate.pattern,
                rate.input,
                rate.output,
                rate.cache_read,
                rate.cache_write,
                rate.reasoning,
                rate.request,
                rate.changed_by,
            )
        return revision

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
