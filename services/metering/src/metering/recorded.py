"""What a usage event says: of a call that has just been settled, or of its row in the books. Both say the same."""

from datetime import datetime

from contracts.events import UsageRecorded
from contracts.subjects import CallKind
from metering.pricing import as_texts
from metering.sql.store import Settled
from metering.stored import Row, rates_of, usage_of
from metering.times import iso_ms


def kind_of(kind: str) -> CallKind:
    """What a call's event is published as; one that a newer release named is a chat here."""
    try:
        return CallKind(kind)
    except ValueError:
        return CallKind.CHAT


def from_memory(settled: Settled, at: str) -> UsageRecorded:
    """Of a call that a turn has just settled, at `at` (ISO 8601)."""
    fact = settled.arrival.fact
    candidate = fact.candidate
    return UsageRecorded(
        call_id=fact.call_id,
        account=fact.account,
        sequence=settled.sequence,
        state=str(fact.state),
        outcome=fact.outcome,
        credits=settled.credits,
        kind=fact.kind,
        model=settled.model,
        provider="" if candidate is None else candidate.provider,
        usage=fact.usage,
        rates={} if candidate is None else as_texts(candidate.rates),
        user=settled.user,
        project=settled.project,
        key_id=settled.key_id,
        overrun=settled.overrun,
        written_off=settled.written_off,
        duration_ms=fact.duration_ms,
        first_byte_ms=fact.first_byte_ms,
        settled_at=at,
        trace_id=settled.trace_id,
    )


def from_books(row: Row) -> UsageRecorded:
    """Of a row of `metering.model_call` with `account`, `acct_seq` and `amount` of its ledger row."""
    settled_at: datetime = row["settled_at"]
    rates = rates_of(row)
    return UsageRecorded(
        call_id=str(row["id"]),
        account=row["account"],
        sequence=row["acct_seq"],
        state=row["state"],
        outcome=row["outcome"] or "",
        credits=f"{row['amount']:f}",
        kind=row["kind"],
        model=row["model"],
        provider=row["provider"] or "",
        usage=usage_of(row),
        rates={} if rates is None else as_texts(rates),
        user=row["user_did"],
        project=row["project"],
        key_id=row["key_id"],
        overrun=f"{row['overrun']:f}",
        written_off=f"{row['written_off']:f}",
        duration_ms=int(row["duration_s"] * 1000),
        first_byte_ms=row["first_byte_ms"] or 0,
        settled_at=iso_ms(settled_at),
        trace_id=row["trace_id"],
    )
