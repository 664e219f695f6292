"""Questions of people and duties, outside the bytes path: one line per method."""

from functools import partial

from faststream.nats import NatsBroker

from contracts.rpc import metering as questions
from contracts.rpc.what_if import WHAT_IF, WhatIf, WhatIfReply
from metering import accounts, calls
from metering.leases import Leases
from metering.what_if import what_if
from runtime.postgres import Pool
from runtime.rpc import answer


def serve(broker: NatsBroker, pool: Pool, leases: Leases) -> None:
    """Add every method to a broker that has not started."""
    q, me = questions, questions.SERVICE
    answer(broker, me, q.CALL_GET, q.CallGet, q.CallView, partial(calls.get, pool))
    answer(broker, me, q.CALL_LIST, q.CallList, q.CallPage, partial(calls.page, pool))
    answer(broker, me, q.CALL_OUTCOMES, q.CallOutcomes, q.CallOutcomesReply, partial(calls.outcomes, pool))
    answer(broker, me, WHAT_IF, WhatIf, WhatIfReply, partial(what_if, pool))
    answer(broker, me, q.STALE, q.StaleCalls, q.StaleReply, leases.stale)
    answer(broker, me, q.BALANCE, q.BalanceGet, q.Balance, partial(accounts.balance, pool))
    answer(broker, me, q.GRANT, q.Grant, q.Balance, partial(accounts.grant, pool))
    answer(broker, me, q.ACCOUNTS_OPEN, q.AccountsOpen, q.AccountsOpened, partial(accounts.open_many, pool))
