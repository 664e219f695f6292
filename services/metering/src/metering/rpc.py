"""Questions of people and duties, outside the bytes path: one line per method."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from faststream.nats import NatsBroker
from pydantic import BaseModel

from contracts.rpc import credit as c
from contracts.rpc import metering as questions
from contracts.rpc.what_if import WHAT_IF, WhatIf, WhatIfReply
from metering import accounts, calls
from metering.leases import Leases
from metering.ledger import changes, due, statements, views
from metering.ledger.due import Changed
from metering.what_if import what_if
from runtime.postgres import Pool
from runtime.rpc import answer

Q = TypeVar("Q", bound=BaseModel)


def serve(broker: NatsBroker, pool: Pool, leases: Leases, changed: Changed) -> None:
    """Add every method to a broker that has not started; `changed` hears of accounts whose credit was changed."""
    q, me = questions, questions.SERVICE
    answer(broker, me, q.CALL_GET, q.CallGet, q.CallView, partial(calls.get, pool))
    answer(broker, me, q.CALL_LIST, q.CallList, q.CallPage, partial(calls.page, pool))
    answer(broker, me, q.CALL_OUTCOMES, q.CallOutcomes, q.CallOutcomesReply, partial(calls.outcomes, pool))
    answer(broker, me, WHAT_IF, WhatIf, WhatIfReply, partial(what_if, pool))
    answer(broker, me, q.STALE, q.StaleCalls, q.StaleReply, leases.stale)
    answer(broker, me, q.BALANCE, q.BalanceGet, q.Balance, partial(accounts.balance, pool))
    answer(broker, me, q.ACCOUNTS_OPEN, q.AccountsOpen, q.AccountsOpened, partial(accounts.open_many, pool))
    answer(broker, me, c.ACCOUNTS_LIST, c.AccountsList, c.AccountsPage, partial(accounts.listed, pool))
    answer(broker, me, c.GRANTS_LIST, c.GrantsList, c.GrantsPage, partial(views.grants, pool))
    answer(broker, me, c.TRANSACTIONS, c.TransactionsList, c.TransactionsPage, partial(views.transactions, pool))
    answer(broker, me, c.STATEMENT, c.StatementGet, c.Statement, partial(statements.statement, pool))
    answer(broker, me, c.GRANTS_DUE, c.GrantsDue, c.GrantsDone, partial(due.once, pool, changed))

    async def grant(request: q.Grant) -> q.Balance:
        balance = await changes.grant(pool, request)
        changed([balance.account])
        return balance

    answer(broker, me, q.GRANT, q.Grant, q.Balance, grant)
    answer(broker, me, c.ADJUST, c.Adjust, c.CreditChanged, _telling(changed, partial(changes.adjust, pool)))
    answer(
        broker, me, c.REFUND_CALL, c.RefundCall, c.CreditChanged, _telling(changed, partial(changes.refund_call, pool))
    )
    answer(
        broker,
        me,
        c.REFUND_GRANT,
        c.RefundGrant,
        c.CreditChanged,
        _telling(changed, partial(changes.refund_grant, pool)),
    )
    answer(broker, me, c.GRANT_EXPIRE, c.GrantExpire, c.CreditChanged, _telling(changed, partial(changes.expire, pool)))


def _telling(
    changed: Changed, handler: Callable[[Q], Awaitable[c.CreditChanged]]
) -> Callable[[Q], Awaitable[c.CreditChanged]]:
    """The same handler, after which `changed` hears of the account."""

    async def handled(request: Q) -> c.CreditChanged:
        done = await handler(request)
        changed([done.entry.account])
        return done

    return handled
