"""Statements on schema `catalog`: what checks found, what they propose, and what was decided."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

from contracts.errors import ErrorCode, HubError
from contracts.rpc.catalog import Values
from provider_router.sql.rate_rows import NewRate
from provider_router.sql.store import Added, add_rates
from runtime.postgres import Pool

if TYPE_CHECKING:
    import asyncpg

_RECORD: Final = """
insert into catalog.rate_check (checked_by, source, counts, found) values ($1, $2, $3, $4) returning id::text
"""
_PROPOSE: Final = """
insert into catalog.rate_proposal (pattern, version, reason, drift, new_rates, new_costs, cost_source, digest)
select $1::text, max(revision), $2::text, $3::numeric, $4::jsonb, $5::jsonb, $6::text, $7::text
  from catalog.rate where pattern = $1::text and type = 'chatCompletion' having max(revision) is not null
on conflict (version, digest) do nothing returning id
"""
_REFUSED: Final = """
select exists (
    select from catalog.rate_proposal p join catalog.rate_decision d on d.proposal = p.id
     where p.pattern = $1 and p.digest = $2
       and p.version = (select max(revision) from catalog.rate where pattern = $1 and type = 'chatCompletion'))
"""
_PROPOSAL: Final = """
       p.id::text as proposal_id, p.pattern, p.version, p.reason, p.drift, p.new_rates, p.new_costs, p.cost_source,
       p.proposed_at
"""
# Proposals are about rates of chat calls; one is void once its pattern has a later version.
_OPEN: Final = f"""
select {_PROPOSAL} from catalog.rate_proposal p
 where not exists (select from catalog.rate_decision d where d.proposal = p.id)
   and not exists (
       select from catalog.rate r
        where r.pattern = p.pattern and r.type = 'chatCompletion' and r.revision > p.version)
 order by p.proposed_at, p.id
"""  # noqa: S608 - our own words only
_ONE: Final = f"select {_PROPOSAL} from catalog.rate_proposal p where p.id::text = $1"  # noqa: S608 - our own words only
_DECIDE: Final = """
insert into catalog.rate_decision (proposal, decision, decided_by) values ($1::text::uuid, $2, $3)
on conflict do nothing returning proposal
"""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A change that waits for approval."""

    proposal_id: str
    pattern: str
    version: int
    reason: Literal["drift", "below_cost"]
    drift: Decimal
    values: Values
    costs: Values
    cost_source: str
    proposed_at: datetime


@dataclass(frozen=True, slots=True)
class NewProposal:
    """A change about to be proposed."""

    pattern: str
    reason: str
    drift: Decimal
    values: Values
    costs: Values
    cost_source: str

    @property
    def digest(self) -> str:
        """The same change is proposed once, whatever the source calls itself by then."""
        text = f"{self.values.model_dump_json()}\n{self.costs.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()


class Reviews:
    """Checks, proposals and decisions; rows are only added. Every method raises `asyncpg` errors as they come."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def record(self, checked_by: str, source: str, counts: str, found: str) -> str:
        """Keep what a check found; counts and findings as JSON. Returns the check's id."""
        check_id: str = await self._pool.fetchval(_RECORD, checked_by, source, counts, found)
        return check_id

    async def propose(self, proposals: Sequence[NewProposal]) -> list[Literal["proposed", "waiting", "none"]]:
        """Propose changes.

        Returns:
            For each whether it is new, waits already, or was decided before (`none`).
        """
        results: list[Literal["proposed", "waiting", "none"]] = []
        async with self._pool.acquire() as connection, connection.transaction():
            for new in proposals:
                made = await connection.fetchval(
                    _PROPOSE,
                    new.pattern,
                    new.reason,
                    new.drift,
                    new.values.model_dump_json(),
                    new.costs.model_dump_json(),
                    new.cost_source,
                    new.digest,
                )
                decided = made is None and await connection.fetchval(_REFUSED, new.pattern, new.digest)
                results.append("proposed" if made is not None else "none" if decided else "waiting")
        return results

    async def waiting(self) -> list[Proposed]:
        """Open proposals, oldest first."""
        return [_proposed(row) for row in await self._pool.fetch(_OPEN)]

    async def find(self, proposal_id: str) -> Proposed:
        """One proposal, whatever its state.

        Raises:
            HubError: `not_found`.
        """
        row = await self._pool.fetchrow(_ONE, proposal_id)
        if row is None:
            raise HubError(ErrorCode.NOT_FOUND, "There is no such proposal.", param="proposal_id")
        return _proposed(row)

    async def decide(self, proposal: Proposed, decided_by: str, rate: NewRate | None) -> Added | None:
        """Close a proposal, and add its version when it is approved, in one transaction.

        Args:
            proposal: from `find`.
            decided_by: who.
            rate: the version to add; None = the proposal is refused.

        Raises:
            HubError: `conflict`: it was decided before, or its pattern has a later version.
        """
        decision = "refused" if rate is None else "approved"
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(_DECIDE, proposal.proposal_id, decision, decided_by) is None:
                raise HubError(ErrorCode.CONFLICT, "This proposal was decided already.", param="proposal_id")
            if rate is None:
                return None
            return await add_rates(connection, [replace(rate, expected_version=proposal.version)])


def _proposed(row: "asyncpg.Record") -> Proposed:
    return Proposed(
        proposal_id=row["proposal_id"],
        pattern=row["pattern"],
        version=row["version"],
        reason=row["reason"],
        drift=row["drift"],
        values=Values.model_validate_json(row["new_rates"]),
        costs=Values.model_validate_json(row["new_costs"]),
        cost_source=row["cost_source"],
        proposed_at=row["proposed_at"].astimezone(UTC),
    )
