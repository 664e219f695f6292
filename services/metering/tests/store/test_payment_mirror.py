"""The mirrored balance against a model of Payment Kit, over random orders of readings, reports and marks.

No credit that Payment Kit does not have can be spent, and at rest both sides agree.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from rig.fixtures import Database

from contracts.ids import new_call_id
from metering.payment_kit.mirror import _BEFORE, _MIRROR
from runtime.postgres import Pool
from runtime.postgres import pool as open_pool

A = "z1payer"
SEQUENCES = 30
STEPS = 60


@dataclass
class Model:
    """Payment Kit, and what is under way between it and the books."""

    pool: Pool
    random: Random
    remote: Decimal = Decimal(0)
    """Balance minus pending there."""
    open: dict[UUID, Decimal] = field(default_factory=dict)
    """Calls and their holds."""
    unapplied: list[tuple[UUID, Decimal]] = field(default_factory=list)
    unmarked: list[UUID] = field(default_factory=list)
    readings: list[list[Any]] = field(default_factory=list)
    """[what was read before, balance and pending or None]."""

    async def grant(self) -> None:
        self.remote += self.random.randint(1, 9)

    async def expire(self) -> None:
        self.remote -= min(max(self.remote, Decimal(0)), Decimal(self.random.randint(1, 5)))

    async def reserve(self) -> None:
        hold = Decimal(self.random.randint(1, 6))
        sql = "update metering.account set held = held + $2 where id = $1 and granted - spent - held >= $2 returning 1"
        if await self.pool.fetchval(sql, A, hold):
            self.open[UUID(new_call_id())] = hold

    async def settle(self) -> None:
        if not self.open:
            return
        call, hold = self.open.popitem()
        cost = min(hold, Decimal(self.random.randint(0, 50)).scaleb(-1))
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "update metering.account set held = held - $2, spent = spent + $3, seq = seq + 1 where id = $1",
                A,
                hold,
                cost,
            )
            await connection.execute(  # as `metering.turn_with_outbox` does it
                "update metering.account a set granted = greatest(p.target, a.spent + a.held)"
                " from metering.payment_account p where a.id = $1 and p.account = $1 and p.target < a.granted",
                A,
            )
            if cost:
                await connection.execute(
                    "insert into metering.outbox (id, kind, identifier, account, user_did, project, value, event_at)"
                    " values ($1, 'meter', 'mc_' || $1::uuid, $2, 'u', 'p', $3, 0)",
                    call,
                    A,
                    cost,
                )
                self.unapplied.append((call, cost))

    async def apply(self) -> None:
        if self.unapplied:
            call, cost = self.unapplied.pop(self.random.randrange(len(self.unapplied)))
            self.remote -= cost
            self.unmarked.append(call)

    async def mark(self) -> None:
        if self.unmarked:
            sql = "update metering.outbox set state = 'sent', sent_at = now() where id = $1"
            await self.pool.execute(sql, self.unmarked.pop())

    async def begin_reading(self) -> None:
        self.readings.append([await self.pool.fetchrow(_BEFORE, A, "USD"), None])

    async def read(self) -> None:
        for reading in self.readings:
            if reading[1] is None:
                reading[1] = (max(self.remote, Decimal(0)), max(-self.remote, Decimal(0)))
                return

    async def end_reading(self) -> None:
        done = [reading for reading in self.readings if reading[1] is not None]
        if done:
            reading = self.random.choice(done)
            self.readings.remove(reading)
            before, (balance, pending) = reading
            values = (A, balance, pending, before["reported"], 1, before["seq"], 1, 0, before["reading"])
            await self.pool.fetchval(_MIRROR, *values)

    async def account(self) -> asyncpg.Record:
        row = await self.pool.fetchrow("select * from metering.account where id = $1", A)
        assert row is not None
        return row


@pytest.mark.parametrize("can_expire", [False, True], ids=["grants only", "grants and expiry"])
async def test_no_order_of_events_lets_more_be_spent_than_payment_kit_has(database: Database, can_expire: bool) -> None:
    pool = await open_pool(database.dsns["metering"], name="test", size=1)
    for seed in range(SEQUENCES):
        await _from_new(pool)
        model = Model(pool, Random(seed))  # noqa: S311 - no secret
        steps = [
            model.grant, model.reserve, model.reserve, model.settle, model.settle, model.apply, model.apply, model.mark,
            model.mark, model.begin_reading, model.read, model.read, model.end_reading,
        ]  # fmt: skip
        if can_expire:
            steps.append(model.expire)
        for step in (model.grant, model.grant, model.begin_reading, model.read, model.end_reading):
            await step()
        for _ in range(STEPS):
            await model.random.choice(steps)()
            account = await model.account()
            not_there = sum((cost for _, cost in model.unapplied), Decimal(0))
            free = account["granted"] - account["spent"] - account["held"]
            if not can_expire:  # what expires is known with the next reading only
                assert free <= max(Decimal(0), model.remote - not_there - account["held"]), f"seed {seed}"
        await _at_rest(model)
    await pool.close()


async def _at_rest(model: Model) -> None:
    while model.open:
        await model.settle()
    while model.unapplied:
        await model.apply()
    while model.unmarked:
        await model.mark()
    await model.begin_reading()
    for _ in range(len(model.readings)):
        await model.read()
    while model.readings:  # old ones end last, some of them
        await model.end_reading()
    account = await model.account()
    assert account["held"] == 0
    assert account["granted"] - account["spent"] == max(Decimal(0), model.remote)


async def _from_new(pool: Pool) -> None:
    await pool.execute("update metering.outbox set state = 'sent'")
    await pool.execute(
        "insert into metering.account (id) values ($1)"
        " on conflict (id) do update set granted = account.spent, held = 0",
        A,
    )
    await pool.execute(
        "insert into metering.payment_account (account, did, target)"
        " select id, id, spent from metering.account where id = $1"
        " on conflict (account) do update set target = excluded.target",
        A,
    )
