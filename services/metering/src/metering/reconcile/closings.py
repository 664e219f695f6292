"""Closing days: a digest of each day's settled rows, chained to the day before; and computing them again.

The digest of an account is made in SQL, function `day_digests_1`, over each row's SHA-256. The digest of a day is
SHA-256 over one line per account, in the order of the accounts' UTF-8: its name as JSON, calls, amount, digest in hex.
The chain is SHA-256 over the chain of the day before (32 zero bytes at first), the day in ISO form and the digest.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

import asyncpg

from contracts.money import ZERO
from contracts.rpc.reconcile import CloseDays, CloseDaysReply, ClosedDay
from metering.reconcile.check import Connection, Difference, Found, text

FORM: Final = 1
_LOCK: Final = 7_201_190_511_362
_WAIT: Final = timedelta(minutes=10)
"""After the end of a day no transaction is under way any more that began in it: a turn is cut off after seconds."""
_BEGINNING: Final = bytes(32)
_LAST: Final = "select day, chain from metering.closing order by day desc limit 1"
_FIRST_ROW: Final = "select (min(at) at time zone 'UTC')::date from metering.ledger"
_OVER: Final = "select ((now() - $1::interval) at time zone 'UTC')::date"
_DIGESTS: Final = "select account, calls, amount, digest from metering.day_digests_1($1)"
_TOTALS: Final = """
select u.account, coalesce(k.calls_total, 0) as calls, coalesce(k.amount_total, 0) as amount
from unnest($1::text[]) u(account) cross join lateral (
    select max(t.calls_total) as calls_total, max(t.amount_total) as amount_total from (
        select c.calls_total, c.amount_total from metering.closing_account c
        where c.account = u.account and c.day < $2 order by c.day desc limit 1
    ) t
) k
"""
_NEW_ACCOUNTS: Final = """
insert into metering.closing_account (account, day, calls, amount, calls_total, amount_total, digest)
select u.account, $1, u.calls, u.amount, u.calls_total, u.amount_total, u.digest
from unnest($2::text[], $3::bigint[], $4::numeric[], $5::bigint[], $6::numeric[], $7::bytea[])
    as u(account, calls, amount, calls_total, amount_total, digest)
"""
_NEW_DAY: Final = (
    "insert into metering.closing (day, form, accounts, calls, amount, digest, chain)"
    " values ($1, $2, $3, $4, $5, $6, $7)"
)
_TOTALS_WRONG: Final = """
select * from (
    select k.*, lag(k.calls_total, 1, 0::bigint) over byday + k.calls as calls_sum,
        lag(k.amount_total::numeric, 1, 0::numeric) over byday + k.amount as amount_sum
    from metering.closing_account k window byday as (partition by k.account order by k.day)
) k where k.calls_total <> k.calls_sum or k.amount_total <> k.amount_sum order by k.day, k.account limit 1000
"""
_CLOSED: Final = "select * from metering.closing order by day"
_CLOSED_ACCOUNTS: Final = (
    "select account, calls, amount, calls_total, amount_total, digest from metering.closing_account where day = $1"
)


@dataclass(frozen=True, slots=True)
class AccountDay:
    """What an account's settled rows of one day come to."""

    account: str
    calls: int
    amount: Decimal
    digest: bytes


async def close_days(connection: Connection, request: CloseDays) -> CloseDaysReply:
    """Close the oldest days that are over, each in a transaction of its own; safe to repeat.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: days closed before stay closed; ask again.
    """
    closed: list[ClosedDay] = []
    while len(closed) < request.most:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            day, chain = await _next_day(connection)
            if day is None:
                return CloseDaysReply(closed=tuple(closed), more=False)
            closed.append(await _close(connection, day, chain))
    return CloseDaysReply(closed=tuple(closed), more=True)


async def verify(connection: Connection) -> Found:
    """Compute every closed day again; differences come in the order of days, so the first is the first broken one."""
    found = Found("closings", "digests computed again", "closed days")
    before: asyncpg.Record | None = None
    for row in await connection.fetch(_CLOSED):
        await _verify_day(connection, found, row, before)
        before = row
    for row in await connection.fetch(_TOTALS_WRONG):
        expected, total = (f"{row[f'calls_{n}']} calls, {text(row[f'amount_{n}'])}" for n in ("sum", "total"))
        what = f"{row['day']}: the total up to this day is not that of the day before with this day's"
        found.add(Difference("closing_total", row["account"], None, f"{expected} ({row['day']})", total, what))
    return found


def day_digest(accounts: Sequence[AccountDay]) -> bytes:
    """The digest of a day; see the module."""
    whole = hashlib.sha256()
    for entry in sorted(accounts, key=lambda each: each.account.encode()):
        name = json.dumps(entry.account, ensure_ascii=False)
        whole.update(f"{name} {entry.calls} {text(entry.amount)} {entry.digest.hex()}\n".encode())
    return whole.digest()


def chained(before: bytes, day: date, digest: bytes) -> bytes:
    """The chain up to a day; see the module."""
    return hashlib.sha256(before + day.isoformat().encode() + digest).digest()


async def _next_day(connection: Connection) -> tuple[date | None, bytes]:
    last = await connection.fetchrow(_LAST)
    first: date | None = await connection.fetchval(_FIRST_ROW) if last is None else last["day"] + timedelta(days=1)
    over: date = await connection.fetchval(_OVER, _WAIT)
    if first is None or first >= over:
        return None, _BEGINNING
    return first, _BEGINNING if last is None else bytes(last["chain"])


async def _close(connection: Connection, day: date, before: bytes) -> ClosedDay:
    accounts = await _account_days(connection, day)
    names = [entry.account for entry in accounts]
    totals = {row["account"]: row for row in await connection.fetch(_TOTALS, names, day)}
    await connection.execute(
        _NEW_ACCOUNTS,
        day,
        names,
        [entry.calls for entry in accounts],
        [entry.amount for entry in accounts],
        [totals[entry.account]["calls"] + entry.calls for entry in accounts],
        [totals[entry.account]["amount"] + entry.amount for entry in accounts],
        [entry.digest for entry in accounts],
    )
    calls, amount = sum(entry.calls for entry in accounts), sum((entry.amount for entry in accounts), ZERO)
    digest = day_digest(accounts)
    chain = chained(before, day, digest)
    await connection.execute(_NEW_DAY, day, FORM, len(accounts), calls, amount, digest, chain)
    return ClosedDay(day=day.isoformat(), accounts=len(accounts), calls=calls, amount=amount, chain=chain.hex())


async def _account_days(connection: Connection, day: date) -> list[AccountDay]:
    rows = await connection.fetch(_DIGESTS, day)
    return [AccountDay(row["account"], row["calls"], row["amount"], bytes(row["digest"])) for row in rows]


async def _verify_day(connection: Connection, found: Found, row: asyncpg.Record, before: asyncpg.Record | None) -> None:
    day: date = row["day"]
    if before is not None and day != before["day"] + timedelta(days=1):
        missing = before["day"] + timedelta(days=1)
        found.add(Difference("closing_gap", "", None, missing.isoformat(), "none", f"{missing} is not closed"))
    if row["form"] != FORM:
        what = f"{day}: closed by another version, in form {row['form']}"
        found.add(Difference("closing_form", "", None, str(FORM), str(row["form"]), what))
        return
    now = await _account_days(connection, day)
    closed = {entry["account"]: entry for entry in await connection.fetch(_CLOSED_ACCOUNTS, day)}
    found.left_count += 1
    found.left_sum += sum((entry.amount for entry in now), ZERO)
    found.right_count += 1
    found.right_sum += row["amount"]
    _compare_accounts(found, day, now, closed)
    written = [AccountDay(name, each["calls"], each["amount"], bytes(each["digest"])) for name, each in closed.items()]
    if day_digest(written) != row["digest"] or sum(each.calls for each in written) != row["calls"]:
        what = f"{day}: the day's digest is not that of its accounts' rows as they were closed"
        found.add(Difference("closing_digest", "", None, day_digest(written).hex()[:16], _short(row["digest"]), what))
    chain = chained(_BEGINNING if before is None else bytes(before["chain"]), day, bytes(row["digest"]))
    if chain != row["chain"]:
        what = f"{day}: the chain does not lead here from the day before"
        found.add(Difference("closing_chain", "", None, chain.hex()[:16], _short(row["chain"]), what))


def _compare_accounts(found: Found, day: date, now: Sequence[AccountDay], closed: dict[str, asyncpg.Record]) -> None:
    """Which accounts' rows are not those that were closed."""
    by_name = {entry.account: entry for entry in now}
    for name in sorted(by_name.keys() | closed.keys(), key=str.encode):
        rows, was = by_name.get(name), closed.get(name)
        if rows is None or was is None or rows.digest != was["digest"]:
            expected = "no rows" if was is None else f"{was['calls']} calls, {text(was['amount'])}"
            amount = "no rows" if rows is None else f"{rows.calls} calls, {text(rows.amount)}"
            what = f"{day}: the account's rows are not those of its closing"
            found.add(Difference("closing_account", name, None, f"{expected} ({day})", amount, what))


def _short(digest: bytes) -> str:
    return bytes(digest).hex()[:16]
