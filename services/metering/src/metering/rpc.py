"""Questions of people and duties, outside the bytes path: one line per method."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import NoReturn, TypeVar

from faststream.nats import NatsBroker
from pydantic import BaseModel

from contracts.errors import ErrorCode, HubError
from contracts.rpc import conversion as v
from contracts.rpc import credit as c
from contracts.rpc import grant_conversion as g
from contracts.rpc import metering as q
from contracts.rpc import model_calls, payments
from contracts.rpc import reconcile as r
from contracts.rpc.envelope import Empty
from contracts.rpc.what_if import WHAT_IF, WhatIf, WhatIfReply
from metering import accounts, calls, upkeep
from metering.leases import Leases
from metering.ledger import changes, due, statements, views
from metering.ledger.conversion import Conversions
from metering.ledger.due import Changed
from metering.payment_kit import off
from metering.payment_kit.adapter import Adapter
from metering.reconcile import recompute, reports
from metering.reconcile.closings import close_days
from metering.reconcile.repairs import repair
from metering.reconcile.runs import Runs
from metering.reconcile.session import connected
from metering.usage_events import UsageEvents
from metering.what_if import what_if
from runtime.postgres import Pool
from runtime.rpc import answer

Q = TypeVar("Q", bound=BaseModel)
ME = q.SERVICE


def serve(
    broker: NatsBroker,
    pool: Pool,
    leases: Leases,
    changed: Changed,
    payment: Adapter | None,
    payment_link: str | None,
    credit_price: Decimal,
) -> None:
    """Add every method to a broker that has not started; `changed` hears of accounts whose credit was changed by hand.

    Credit is kept by `payment` where there is a Payment Kit, else by the built-in ledger.
    """
    answer(broker, ME, model_calls.CALL_GET, model_calls.CallGet, model_calls.CallView, partial(calls.get, pool))
    answer(broker, ME, model_calls.CALL_LIST, model_calls.CallList, model_calls.CallPage, partial(calls.page, pool))
    answer(
        broker,
        ME,
        model_calls.CALL_OUTCOMES,
        model_calls.CallOutcomes,
        model_calls.CallOutcomesReply,
        partial(calls.outcomes, pool),
    )
    answer(broker, ME, WHAT_IF, WhatIf, WhatIfReply, partial(what_if, pool))
    answer(broker, ME, model_calls.STALE, model_calls.StaleCalls, model_calls.StaleReply, leases.stale)
    answer(broker, ME, q.BALANCE, q.BalanceGet, q.Balance, partial(accounts.balance, pool))
    answer(broker, ME, c.ACCOUNTS_LIST, c.AccountsList, c.AccountsPage, partial(accounts.listed, pool))
    answer(broker, ME, c.GRANTS_LIST, c.GrantsList, c.GrantsPage, partial(views.grants, pool))
    answer(broker, ME, c.TRANSACTIONS, c.TransactionsList, c.TransactionsPage, partial(views.transactions, pool))
    answer(broker, ME, c.STATEMENT, c.StatementGet, c.Statement, partial(statements.statement, pool))
    if payment is None:
        _serve_ledger(broker, pool, changed, payment_link)
        _serve_without_payment_kit(broker, credit_price)
    else:
        _serve_payment_kit(broker, payment)


def _serve_ledger(broker: NatsBroker, pool: Pool, changed: Changed, payment_link: str | None) -> None:
    """Changes of credit in the built-in ledger; `changed` hears of the accounts."""

    async def grant(request: q.Grant) -> q.Balance:
        balance = await changes.grant(pool, request)
        changed([balance.account])
        return balance

    answer(broker, ME, q.GRANT, q.Grant, q.Balance, grant)
    answer(broker, ME, q.ACCOUNTS_OPEN, q.AccountsOpen, q.AccountsOpened, partial(accounts.open_many, pool))
    conversions = Conversions(pool)
    answer(broker, ME, v.CONVERSION_START, v.ConversionStart, v.Conversion, conversions.start)
    answer(broker, ME, v.CONVERSION_ACCOUNTS, v.ConversionAccounts, v.ConversionPage, conversions.accounts)
    answer(broker, ME, v.CONVERSION_FINISH, v.ConversionFinish, v.Conversion, conversions.finish)
    _change(broker, c.ADJUST, c.Adjust, _telling(changed, partial(changes.adjust, pool)))
    _change(broker, c.REFUND_CALL, c.RefundCall, _telling(changed, partial(changes.refund_call, pool)))
    _change(broker, c.REFUND_GRANT, c.RefundGrant, _telling(changed, partial(changes.refund_grant, pool)))
    _change(broker, c.GRANT_EXPIRE, c.GrantExpire, _telling(changed, partial(changes.expire, pool)))
    answer(broker, ME, c.GRANTS_DUE, c.GrantsDue, c.GrantsDone, partial(due.once, pool, changed))
    answer(broker, ME, payments.PAYMENT_STATUS, payments.PaymentStatusGet, payments.PaymentStatus, off.status)
    answer(
        broker,
        ME,
        payments.PAYMENT_LINK,
        payments.PaymentLinkGet,
        payments.PaymentLink,
        partial(off.link, payment_link),
    )
    answer(broker, ME, payments.PAYMENT_CALLBACK, payments.PaymentCallback, payments.PaymentCallbackReply, off.received)
    answer(broker, ME, payments.PAYMENT_PAUSE, payments.PaymentPause, payments.PaymentStatus, off.pause)
    answer(broker, ME, payments.PAYMENT_RETRY, payments.PaymentRetry, payments.PaymentRetried, off.retry)


def _serve_without_payment_kit(broker: NatsBroker, credit_price: Decimal) -> None:
    """Questions about grants that Payment Kit would hold."""
    answer(broker, ME, g.GRANTS_CONVERT, g.GrantsConvert, g.GrantsConversion, off.convert)
    answer(broker, ME, g.GRANTS_CONVERSION, g.GrantsConversionGet, g.GrantsConversion, off.conversion)
    answer(broker, ME, g.GRANTS_CONVERT_FINISH, g.GrantsConvertFinish, g.GrantsConversion, off.finish)
    answer(broker, ME, g.GRANTS_UNIT, g.GrantsUnitGet, g.GrantsUnit, partial(off.unit, credit_price))


def _serve_payment_kit(broker: NatsBroker, payment: Adapter) -> None:
    """Credit is Payment Kit's: grants are made there, and all other changes too."""
    answer(broker, ME, q.GRANT, q.Grant, q.Balance, payment.grants.grant)
    answer(broker, ME, q.ACCOUNTS_OPEN, q.AccountsOpen, q.AccountsOpened, payment.grants.open_many)
    answer(broker, ME, v.CONVERSION_START, v.ConversionStart, v.Conversion, _not_converted)
    answer(broker, ME, v.CONVERSION_ACCOUNTS, v.ConversionAccounts, v.ConversionPage, _not_converted)
    answer(broker, ME, v.CONVERSION_FINISH, v.ConversionFinish, v.Conversion, _not_converted)
    conversions = payment.conversions
    answer(broker, ME, g.GRANTS_CONVERT, g.GrantsConvert, g.GrantsConversion, conversions.start)
    answer(broker, ME, g.GRANTS_CONVERSION, g.GrantsConversionGet, g.GrantsConversion, conversions.get)
    answer(broker, ME, g.GRANTS_CONVERT_FINISH, g.GrantsConvertFinish, g.GrantsConversion, conversions.finish)
    answer(broker, ME, g.GRANTS_UNIT, g.GrantsUnitGet, g.GrantsUnit, conversions.unit)
    _change(broker, c.ADJUST, c.Adjust, _elsewhere)
    _change(broker, c.REFUND_CALL, c.RefundCall, _elsewhere)
    _change(broker, c.REFUND_GRANT, c.RefundGrant, _elsewhere)
    _change(broker, c.GRANT_EXPIRE, c.GrantExpire, _elsewhere)
    answer(broker, ME, c.GRANTS_DUE, c.GrantsDue, c.GrantsDone, _none_due)
    answer(broker, ME, payments.PAYMENT_STATUS, payments.PaymentStatusGet, payments.PaymentStatus, payment.status.get)
    answer(broker, ME, payments.PAYMENT_LINK, payments.PaymentLinkGet, payments.PaymentLink, payment.links.current)
    answer(
        broker,
        ME,
        payments.PAYMENT_CALLBACK,
        payments.PaymentCallback,
        payments.PaymentCallbackReply,
        payment.callbacks.received,
    )
    answer(broker, ME, payments.PAYMENT_PAUSE, payments.PaymentPause, payments.PaymentStatus, payment.status.pause)
    answer(broker, ME, payments.PAYMENT_RETRY, payments.PaymentRetry, payments.PaymentRetried, payment.status.retry)


def _change(
    broker: NatsBroker, method: str, request: type[Q], handler: Callable[[Q], Awaitable[c.CreditChanged]]
) -> None:
    answer(broker, ME, method, request, c.CreditChanged, handler)


def _telling(
    changed: Changed, handler: Callable[[Q], Awaitable[c.CreditChanged]]
) -> Callable[[Q], Awaitable[c.CreditChanged]]:
    """The same handler, after which `changed` hears of the account."""

    async def handled(request: Q) -> c.CreditChanged:
        done = await handler(request)
        changed([done.entry.account])
        return done

    return handled


async def _not_converted(_request: BaseModel) -> NoReturn:
    raise HubError(ErrorCode.CONFLICT, "Payment Kit keeps this hub's grants: `grants_convert` moves them.")


async def _elsewhere(_request: BaseModel) -> c.CreditChanged:
    raise HubError(ErrorCode.CONFLICT, "Payment Kit keeps the credit of this hub's accounts; change it there.")


async def _none_due(_request: c.GrantsDue) -> c.GrantsDone:
    """Payment Kit begins and ends its grants by itself; `granted` mirrors what it says."""
    return c.GrantsDone(accounts=0, started=0, ended=0, more=False)


def serve_books(broker: NatsBroker, pool: Pool, runs: Runs, usage: UsageEvents, notices_kept: timedelta) -> None:
    """Add every method about the books as a whole, and the housekeeping that duties ask for."""
    dsn = runs.dsn

    async def closed(request: r.CloseDays) -> r.CloseDaysReply:
        async with connected(dsn) as connection:
            return await close_days(connection, request)

    answer(broker, ME, r.RECONCILE_START, r.ReconcileStart, r.ReconcileStarted, runs.start)
    answer(broker, ME, r.RECONCILE_GET, r.ReconcileGet, r.ReconcileReport, partial(reports.get, pool))
    answer(
        broker,
        ME,
        r.RECONCILE_REPAIR,
        r.ReconcileRepair,
        r.ReconcileRepaired,
        partial(repair, dsn, usage.publish_again),
    )
    answer(broker, ME, r.RECONCILE_ACCEPT, r.ReconcileAccept, Empty, partial(reports.accept, pool))
    answer(broker, ME, r.RECOMPUTE, r.Recompute, r.RecomputePage, partial(recompute.recompute, dsn))
    answer(broker, ME, r.PROVIDER_SUMS, r.ProviderSums, r.ProviderSumsReply, partial(recompute.provider_sums, dsn))
    answer(broker, ME, r.CLOSE_DAYS, r.CloseDays, r.CloseDaysReply, closed)
    answer(broker, ME, r.MAKE_PARTITIONS, Empty, r.PartitionsMade, partial(upkeep.make_partitions, pool))
    answer(broker, ME, r.EXPIRE_CLAIMS, Empty, r.ClaimsExpired, partial(upkeep.expire, pool, notices_kept))
    answer(broker, ME, r.PARKED_COUNT, Empty, r.ParkedCount, partial(reports.parked_count, pool))
