"""Every channel of the bus in one table: what travels on which subject, who sends it, who receives it.

Pure data. The AsyncAPI document, the snapshots of the compatibility test and the check of live messages come from it;
nothing at run time needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from pydantic import BaseModel

from contracts import dispatch, frames, subjects
from contracts.cloudevent import CreditEvent, UsageEvent
from contracts.events import CallCompleted, CallFailed, CallRequested
from contracts.permissions import GATEWAY, JANITOR, METERING, OPERATOR, ROUTER
from contracts.rpc import (
    catalog,
    conversion,
    credit,
    grant_conversion,
    identity,
    metering,
    model_calls,
    payments,
    rate_changes,
    rate_rows,
    reconcile,
    what_if,
)
from contracts.rpc.envelope import Empty
from contracts.streams import CALLS, CREDIT, FRAMES, USAGE

SUBSCRIBERS: Final = "subscribers"
"""Whoever listens to usage events: warehouses, alerts, billing."""

Model = type[msgspec.Struct] | type[BaseModel]
"""A message that is one JSON document."""


@dataclass(frozen=True, slots=True)
class Octets:
    """A message that is no JSON document, and the documents inside it."""

    description: str
    holds: tuple[Model, ...] = ()


Content = Model | Octets


@dataclass(frozen=True, slots=True)
class Channel:
    """One subject, or a family of subjects that differ in a parameter."""

    name: str
    """Constant name in documents and snapshots, e.g. `rpc.metering.reserve`."""
    subject: str
    """With parameters in braces, each one token: `hub.v1.calls.failed.{kind}`."""
    transport: Literal["core", "request", "jetstream"]
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    content: Content
    summary: str
    reply: Content | None = None
    """Of a request; pydantic models come in the envelope `contracts.rpc.envelope.Reply`."""
    queue: str = ""
    """Queue group: one member of it gets each message."""
    stream: str = ""
    """The JetStream stream that keeps it."""
    public: bool = False
    """For readers outside the hub: its shape is a promise to them too."""


def _rpc(owner: str, method: str, askers: Sequence[str], request: Model, reply: Model, summary: str) -> Channel:
    subject = subjects.rpc(owner, method)
    return Channel(
        f"rpc.{owner}.{method}", subject, "request", tuple(askers), (owner,), request, summary, reply, queue=owner
    )


_FRAMES: Final = Octets(
    "One or more frames, one after the other, of one or many calls. Each is a header of 13 bytes, big-endian: kind u8"
    " (1 accepted, 2 head, 3 data, 4 end, 5 error), call number u32 (the gateway's own, from the dispatch header),"
    " sequence u32 (from 0, without a gap), payload length u32; then the payload. Accepted, head and error carry JSON"
    " (schemas Accepted, Head, Failure); data carries bytes ready for the client; end carries a splice offset u32"
    " (0xFFFFFFFF = none) and the held bytes.",
    (frames.Accepted, frames.Head, frames.Failure),
)
_DISPATCH: Final = Octets(
    "Length of the header u32, big-endian; the header as JSON (schema DispatchHeader); then the client's body, as it"
    " came.",
    (dispatch.DispatchHeader,),
)
_PART: Final = Octets("Call id (36 bytes of text), number of the part u32, big-endian (from 1), then its bytes.")
_EMPTY: Final = Octets("Empty.")
_PROCESS_ID: Final = Octets("The router's process id, as text.")
_PEOPLE: Final = (OPERATOR,)
_ADMINS: Final = (GATEWAY, OPERATOR)
"""The operator, and administrators by way of the HTTP API."""

CHANNELS: Final = (
    # The path of a call.
    Channel(
        "dispatch", subjects.dispatch("{lane}"), "core", (GATEWAY,), (ROUTER,), _DISPATCH,
        "One call to one provider-router, at most once; the server answers 503 on the reply subject when none listens.",
        queue=ROUTER,
    ),
    Channel(
        "undispatched", f"{subjects.inbox_prefix(GATEWAY, '{gateway}')}.undispatched.{{number}}", "core", ("nats",),
        (GATEWAY,), _EMPTY, "Reply subject of a dispatch: only the server's \"no responders\" comes back on it.",
    ),
    Channel(
        "parts", subjects.inbox_parts("{router}"), "core", (GATEWAY,), (ROUTER,), _PART,
        "Further parts of a large body, to the router that accepted the call.",
    ),
    Channel(
        "inbox.frames", subjects.inbox_frames("{gateway}"), "core", (ROUTER,), (GATEWAY,), _FRAMES,
        "The answer of a call, packed with those of other calls of the same gateway.",
    ),
    Channel(
        "inbox.alive", subjects.inbox_alive("{gateway}"), "request", (ROUTER,), (GATEWAY,), _PROCESS_ID,
        'A router asks whether a gateway still lives; "no responders" means that it is gone.', _EMPTY,
    ),
    Channel(
        "cancel", subjects.cancel("{router}"), "core", (GATEWAY,), (ROUTER,), dispatch.Cancel,
        "Nobody waits for these calls any more.",
    ),
    Channel(
        "inbox.settled", subjects.inbox_settled("{service}", "{process}"), "core", (METERING,), (GATEWAY, ROUTER),
        metering.SettledBatch, "These calls are in the books: the tail may go out, the outcome need not be repeated.",
    ),
    Channel(
        "frames", subjects.frames("{call_id}"), "jetstream", (ROUTER,), (GATEWAY,), _FRAMES,
        "The answer of a call with an Idempotency-Key, or that asked to be resumable: kept in memory, for minutes."
        " Gateways read what is stored and hear what comes.", stream=FRAMES.name,
    ),
    # Facts.
    Channel(
        "calls.requested", f"{subjects.CALLS_REQUESTED}.{{kind}}", "jetstream", (GATEWAY,), (SUBSCRIBERS,),
        CallRequested, "A call was admitted and its hold reserved.", stream=CALLS.name, public=True,
    ),
    Channel(
        "calls.completed", f"{subjects.CALLS_COMPLETED}.{{kind}}", "jetstream", (ROUTER,), (METERING,),
        CallCompleted, "A call delivered an answer, whole or cut short.", stream=CALLS.name, public=True,
    ),
    Channel(
        "calls.failed", f"{subjects.CALLS_FAILED}.{{kind}}", "jetstream", (ROUTER, GATEWAY, JANITOR), (METERING,),
        CallFailed, "A call ended without an answer that may be charged.", stream=CALLS.name, public=True,
    ),
    Channel(
        "usage.recorded", f"{subjects.USAGE_RECORDED}.{{kind}}", "jetstream", (METERING,), (SUBSCRIBERS,),
        UsageEvent, "A call was settled: a CloudEvent, numbered per account without a gap.", stream=USAGE.name,
        public=True,
    ),
    Channel(
        "credit.noticed", f"{subjects.CREDIT}.{{level}}", "jetstream", (METERING,), (SUBSCRIBERS,),
        CreditEvent,
        "A balance has become low, or nothing is left, once per crossing; credits were given, or have ended: a"
        " CloudEvent with a text for the account's owner.",
        stream=CREDIT.name, public=True,
    ),
    Channel(
        "catalog.changed", subjects.CATALOG_CHANGED, "core", (ROUTER,), (GATEWAY, ROUTER), catalog.CatalogChanged,
        "Providers, models or rates are not what a cache says.",
    ),
    Channel(
        "identity.changed", subjects.IDENTITY_CHANGED, "core", (GATEWAY,), (GATEWAY,), identity.IdentityChanged,
        "These keys are not what a cache says.",
    ),
    # Questions of the bytes path.
    _rpc(METERING, metering.RESERVE, (GATEWAY,), metering.ReserveBatch, metering.ReserveReply,
         "Admit calls: a row and a hold for each."),
    _rpc(METERING, metering.EXTEND, (ROUTER,), metering.ExtendHold, metering.ExtendReply,
         "Raise the hold of a running call."),
    _rpc(METERING, metering.RENEW, (ROUTER,), metering.RenewLeases, metering.RenewReply,
         "A router still works on these calls."),
    # Questions of people and duties.
    _rpc(METERING, model_calls.CALL_GET, (GATEWAY, OPERATOR), model_calls.CallGet, model_calls.CallView, "One call."),
    _rpc(METERING, model_calls.CALL_LIST, (GATEWAY, OPERATOR), model_calls.CallList, model_calls.CallPage,
         "Calls, newest first."),
    _rpc(METERING, model_calls.CALL_OUTCOMES, (ROUTER, GATEWAY),
         model_calls.CallOutcomes, model_calls.CallOutcomesReply, "What became of these calls."),
    _rpc(METERING, what_if.WHAT_IF, _PEOPLE, what_if.WhatIf, what_if.WhatIfReply,
         "What past calls would have cost with other rates."),
    _rpc(METERING, model_calls.STALE, (JANITOR,), model_calls.StaleCalls, model_calls.StaleReply,
         "Calls whose lease has ended."),
    _rpc(METERING, metering.BALANCE, (GATEWAY, OPERATOR), metering.BalanceGet, metering.Balance,
         "Balance of an account."),
    _rpc(METERING, metering.GRANT, (GATEWAY, OPERATOR), metering.Grant, metering.Balance, "Give credits, once."),
    _rpc(METERING, metering.ACCOUNTS_OPEN, (GATEWAY, OPERATOR), metering.AccountsOpen, metering.AccountsOpened,
         "Open accounts with a welcome grant."),
    _rpc(METERING, credit.ADJUST, (GATEWAY, OPERATOR), credit.Adjust, credit.CreditChanged,
         "Give or take credits, once."),
    _rpc(METERING, credit.REFUND_CALL, (GATEWAY, OPERATOR), credit.RefundCall, credit.CreditChanged,
         "Give a charge back, once."),
    _rpc(METERING, credit.REFUND_GRANT, (GATEWAY, OPERATOR), credit.RefundGrant, credit.CreditChanged,
         "Take unused credits of a grant back, once."),
    _rpc(METERING, credit.GRANT_EXPIRE, (GATEWAY, OPERATOR), credit.GrantExpire, credit.CreditChanged,
         "End a grant now, once."),
    _rpc(METERING, credit.GRANTS_DUE, (JANITOR, OPERATOR), credit.GrantsDue, credit.GrantsDone,
         "Begin and end the grants whose time has come."),
    _rpc(METERING, credit.GRANTS_LIST, (GATEWAY, OPERATOR), credit.GrantsList, credit.GrantsPage,
         "Grants of an account."),
    _rpc(METERING, credit.TRANSACTIONS, (GATEWAY, OPERATOR), credit.TransactionsList, credit.TransactionsPage,
         "Charges and entries of an account, with the balance after each."),
    _rpc(METERING, credit.STATEMENT, (GATEWAY, OPERATOR), credit.StatementGet, credit.Statement,
         "An account's month."),
    _rpc(METERING, credit.ACCOUNTS_LIST, (GATEWAY, OPERATOR), credit.AccountsList, credit.AccountsPage,
         "Accounts and their balances."),
    _rpc(METERING, conversion.CONVERSION_START, _PEOPLE, conversion.ConversionStart, conversion.Conversion,
         "Refuse calls so that the unit of credits can be converted."),
    _rpc(METERING, conversion.CONVERSION_ACCOUNTS, _PEOPLE, conversion.ConversionAccounts, conversion.ConversionPage,
         "Convert a page of accounts, once each."),
    _rpc(METERING, conversion.CONVERSION_FINISH, _PEOPLE, conversion.ConversionFinish, conversion.Conversion,
         "Admit calls again after a conversion."),
    _rpc(METERING, grant_conversion.GRANTS_CONVERT, _ADMINS, grant_conversion.GrantsConvert,
         grant_conversion.GrantsConversion, "Convert the unit of the grants that Payment Kit holds."),
    _rpc(METERING, grant_conversion.GRANTS_CONVERSION, _ADMINS, grant_conversion.GrantsConversionGet,
         grant_conversion.GrantsConversion, "How a conversion of grants stands."),
    _rpc(METERING, grant_conversion.GRANTS_CONVERT_FINISH, _PEOPLE, grant_conversion.GrantsConvertFinish,
         grant_conversion.GrantsConversion, "Admit calls again, in the newer unit."),
    _rpc(METERING, grant_conversion.GRANTS_UNIT, _ADMINS, grant_conversion.GrantsUnitGet,
         grant_conversion.GrantsUnit, "Meters of both units, and what is left in the older one."),
    _rpc(METERING, payments.PAYMENT_LINK, (GATEWAY, OPERATOR), payments.PaymentLinkGet, payments.PaymentLink,
         "Where users buy credits."),
    _rpc(METERING, payments.PAYMENT_CALLBACK, (GATEWAY,), payments.PaymentCallback, payments.PaymentCallbackReply,
         "A webhook of Payment Kit."),
    _rpc(METERING, payments.PAYMENT_STATUS, _PEOPLE, payments.PaymentStatusGet, payments.PaymentStatus,
         "How reporting to Payment Kit goes."),
    _rpc(METERING, payments.PAYMENT_PAUSE, _PEOPLE, payments.PaymentPause, payments.PaymentStatus,
         "Stop or go on reporting to Payment Kit."),
    _rpc(METERING, payments.PAYMENT_RETRY, _PEOPLE, payments.PaymentRetry, payments.PaymentRetried,
         "Try parked reports again."),
    # Metering's books, and its housekeeping.
    _rpc(METERING, reconcile.RECONCILE_START, (JANITOR, OPERATOR), reconcile.ReconcileStart,
         reconcile.ReconcileStarted, "Compare the books with each other and with the bus."),
    _rpc(METERING, reconcile.RECONCILE_GET, (JANITOR, OPERATOR), reconcile.ReconcileGet, reconcile.ReconcileReport,
         "What a comparison found."),
    _rpc(METERING, reconcile.RECONCILE_REPAIR, _PEOPLE, reconcile.ReconcileRepair, reconcile.ReconcileRepaired,
         "Repair a difference by added rows."),
    _rpc(METERING, reconcile.RECONCILE_ACCEPT, _PEOPLE, reconcile.ReconcileAccept, Empty,
         "Leave a difference as it is, with a reason."),
    _rpc(METERING, reconcile.RECOMPUTE, _PEOPLE, reconcile.Recompute, reconcile.RecomputePage,
         "Price settled calls again."),
    _rpc(METERING, reconcile.PROVIDER_SUMS, _PEOPLE, reconcile.ProviderSums, reconcile.ProviderSumsReply,
         "What a provider served on a day, for its bill."),
    _rpc(METERING, reconcile.CLOSE_DAYS, (JANITOR, OPERATOR), reconcile.CloseDays, reconcile.CloseDaysReply,
         "Write the digests of days that are over."),
    _rpc(METERING, reconcile.MAKE_PARTITIONS, (JANITOR,), Empty, reconcile.PartitionsMade,
         "Make the partitions of the months ahead."),
    _rpc(METERING, reconcile.EXPIRE_CLAIMS, (JANITOR,), Empty, reconcile.ClaimsExpired,
         "Drop Idempotency-Keys that have expired, and notices of grants that were told long ago."),
    _rpc(METERING, reconcile.PARKED_COUNT, (JANITOR, OPERATOR), Empty, reconcile.ParkedCount,
         "Facts that could not be settled."),
    _rpc(ROUTER, catalog.SNAPSHOT, (GATEWAY, OPERATOR), catalog.SnapshotGet, catalog.Snapshot,
         "Providers and rates, all that admission needs."),
    _rpc(ROUTER, rate_changes.RATES_SET, _ADMINS, rate_changes.RatesSet, catalog.RateView, "A new rate version."),
    _rpc(ROUTER, rate_changes.RATES_LIST, _ADMINS, rate_changes.RatesList, rate_changes.RatesPage, "Rates in force."),
    _rpc(ROUTER, rate_changes.RATES_HISTORY, _ADMINS, rate_changes.RatesHistory, rate_changes.RateVersions,
         "Rate versions, newest first."),
    _rpc(ROUTER, rate_changes.RATES_DEPRECATE, _ADMINS, rate_changes.RatesDeprecate, catalog.RateView,
         "Take models out of service, or put them back."),
    _rpc(ROUTER, rate_rows.RATES_FIND, _ADMINS, rate_rows.RatesFind, rate_rows.RatesFound, "A page of rates in force."),
    _rpc(ROUTER, rate_rows.RATE_GET, _ADMINS, rate_rows.RateGet, rate_rows.FoundRate, "One rate by its id."),
    _rpc(ROUTER, rate_rows.RATES_CHANGE, _ADMINS, rate_rows.RatesChange, rate_rows.RatesAdded,
         "New rate versions, all or none."),
    _rpc(ROUTER, rate_rows.RATES_REMOVE, _ADMINS, rate_rows.RatesRemove, rate_rows.RateRemoved,
         "Take a rate away from now or later on."),
    _rpc(ROUTER, rate_changes.RATES_SYNC, _ADMINS, rate_changes.RatesSync, rate_changes.RatesChanged,
         "Import unit costs from the price package."),
    _rpc(ROUTER, rate_changes.RATES_MARGIN, _ADMINS, rate_changes.RatesMargin, rate_changes.RatesChanged,
         "Compute imported rates again with another margin."),
    _rpc(ROUTER, conversion.RATES_CONVERT, _PEOPLE, conversion.RatesConvert, rate_changes.RatesChanged,
         "Multiply all rates by the price of a unit, once."),
    _rpc(ROUTER, rate_changes.RATES_CHECK, (*_ADMINS, JANITOR), rate_changes.RatesCheck, rate_changes.CheckReport,
         "Hold rates against what vendors take now."),
    _rpc(ROUTER, rate_changes.RATES_PROPOSALS, _ADMINS, rate_changes.RatesProposals, rate_changes.Proposals,
         "Rate changes that wait for approval."),
    _rpc(ROUTER, rate_changes.RATES_DECIDE, _ADMINS, rate_changes.RatesDecide, rate_changes.Decided,
         "Approve or refuse a rate change, once."),
    _rpc(GATEWAY, identity.KEY_CREATE, _PEOPLE, identity.KeyCreate, identity.KeyCreated, "Make an access key."),
    _rpc(GATEWAY, identity.KEYS_CREATE, _PEOPLE, identity.KeysCreate, identity.KeysCreated,
         "Make many users with a key each."),
    _rpc(GATEWAY, identity.KEY_LIST, _PEOPLE, identity.KeyList, identity.KeyPage, "Access keys, without their texts."),
    _rpc(GATEWAY, identity.KEY_REVOKE, _PEOPLE, identity.KeyRevoke, Empty, "Revoke an access key."),
)  # fmt: skip
