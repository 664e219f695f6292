"""Accounts that are held against Payment Kit's list although nothing new was reported of them: each once a day.

Every run goes on where the last one stopped, in the order of accounts, and takes as many as the time since then asks
for. Where it stopped is kept with what it found. An account in which the last run has found something is looked at
again by every run until it is put right or accepted.
"""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

import asyncpg

from metering.reconcile.check import Connection, one_row

LOOKS_MAX: Final = 5_000
"""Most accounts of one run, and the number of pages read for them after which it takes no further one."""
SPAN: Final = timedelta(days=31)
"""How far an account is looked at; all of it is by `hub reconcile`."""
_ROUND: Final = timedelta(hours=22)
"""A little less than a day: runs may come late."""
_DOUBTFUL_MAX: Final = 200
_NOW: Final = "select clock_timestamp() as at, (select count(*) from metering.payment_account) as accounts"
_LAST: Final = """
select r.id, r.started_at, comparison.value -> 'memory' as memory
from metering.reconciliation r, jsonb_array_elements(r.comparisons) comparison
where r.state = 'done' and r.scope in ('all', 'recent') and comparison.value ->> 'check' = 'payment_kit'
order by r.started_at desc limit 1
"""
_DOUBTFUL: Final = """
select p.account, p.did, p.customer_id from metering.payment_account p
where p.account in (
    select d.account from metering.difference d where d.run_id = $1 and starts_with(d.name, 'payment_')
) order by p.account limit $2
"""
_NEXT: Final = """
select p.account, p.did, p.customer_id from metering.payment_account p
where p.account > $1 order by p.account limit $2
"""


@dataclass(slots=True)
class Rotation:
    """A round through all accounts, as far as it has come."""

    at: datetime
    """Of this run, by PostgreSQL's clock."""
    accounts: int
    """All that Payment Kit keeps."""
    began_at: datetime
    """When the round began."""
    whole_at: datetime | None = None
    """When the last round that is over began: since then every account was looked at."""
    after: str = ""
    """The last account that was looked at."""
    last_run: asyncpg.Record | None = None

    @classmethod
    async def read(cls, connection: Connection) -> Self:
        """Where the last run stopped."""
        now = await one_row(connection, _NOW)
        last = await connection.fetchrow(_LAST)
        memory: dict[str, str] = json.loads((last and last["memory"]) or "null") or {}
        return cls(
            now["at"],
            now["accounts"],
            began_at=_moment(memory.get("began_at")) or now["at"],
            whole_at=_moment(memory.get("whole_at")),
            after=memory.get("after", ""),
            last_run=last,
        )

    async def doubtful(self, connection: Connection) -> list[asyncpg.Record]:
        """Accounts in which the last run has found something."""
        if self.last_run is None:
            return []
        return await connection.fetch(_DOUBTFUL, self.last_run["id"], _DOUBTFUL_MAX)

    async def due(self, connection: Connection) -> list[asyncpg.Record]:
        """The accounts whose turn it is; the last of a round are followed by an empty list, which ends it."""
        since = self.at - _ROUND if self.last_run is None else self.last_run["started_at"]
        wanted = min(math.ceil(self.accounts * ((self.at - since) / _ROUND)), LOOKS_MAX)
        return await connection.fetch(_NEXT, self.after, max(wanted, 1))

    def ended(self) -> None:
        """Every account was looked at since the round began."""
        self.whole_at, self.began_at, self.after = self.began_at, self.at, ""

    def all_at_once(self) -> None:
        """This run has looked at every account."""
        self.whole_at = self.began_at = self.at
        self.after = ""

    def memory(self) -> dict[str, str]:
        """For the next run."""
        whole = {} if self.whole_at is None else {"whole_at": self.whole_at.isoformat()}
        return {"after": self.after, "began_at": self.began_at.isoformat()} | whole

    def words(self) -> str:
        """How far it has come."""
        if self.whole_at is None:
            return f"the first round through all accounts began {self.began_at:%Y-%m-%d %H:%M}Z"
        return f"every account since {self.whole_at:%Y-%m-%d %H:%M}Z"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
