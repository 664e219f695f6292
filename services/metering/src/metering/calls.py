"""What became of a call: questions of users, operators and routers."""

from typing import Any, Final

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.ids import is_call_id
from contracts.money import ZERO, to_text
from contracts.rpc.model_calls import (
    AttemptView,
    CallGet,
    CallList,
    CallOutcome,
    CallOutcomes,
    CallOutcomesReply,
    CallPage,
    CallView,
)
from metering.stored import COUNTS, usage_of
from metering.times import iso_ms
from runtime.postgres import Pool

_ONE: Final = "select * from metering.model_call where id = $1 and ($2::text is null or account = $2)"
_ATTEMPTS: Final = "select * from metering.attempt where call_id = any ($1) order by call_id, number"
_OUTCOMES: Final = "select id, state, credits from metering.model_call where id = any ($1)"


async def get(pool: Pool, request: CallGet) -> CallView:
    """One call.

    Raises:
        HubError: `not_found`, also for another account's call.
    """
    row = None
    if is_call_id(request.call_id):
        row = await pool.fetchrow(_ONE, request.call_id, request.account)
    if row is None:
        raise HubError(ErrorCode.NOT_FOUND, "There is no such call.", param="call_id")
    return _view(row, await pool.fetch(_ATTEMPTS, [row["id"]]))


async def page(pool: Pool, request: CallList) -> CallPage:
    """Calls, newest first.

    Raises:
        HubError: `invalid_request`, when `before` is no call id.
    """
    if request.before is not None and not is_call_id(request.before):
        raise HubError(ErrorCode.INVALID_REQUEST, "`before` is the id of a call.", param="before")
    conditions = []
    values: list[Any] = [request.limit + 1]
    for column, operator, value in (("account", "=", request.account), ("id", "<", request.before)):
        if value is not None:
            values.append(value)
            conditions.append(f"{column} {operator} ${len(values)}")
    where = f"where {' and '.join(conditions)}" if conditions else ""
    rows = await pool.fetch(
        f"select * from metering.model_call {where} order by id desc limit $1",  # noqa: S608 - our own words only
        *values,
    )
    shown = rows[: request.limit]
    attempts: dict[Any, list[asyncpg.Record]] = {}
    for attempt in await pool.fetch(_ATTEMPTS, [row["id"] for row in shown]):
        attempts.setdefault(attempt["call_id"], []).append(attempt)
    return CallPage(
        calls=tuple(_view(row, attempts.get(row["id"], [])) for row in shown),
        next_before=str(shown[-1]["id"]) if len(rows) > len(shown) else None,
    )


async def outcomes(pool: Pool, request: CallOutcomes) -> CallOutcomesReply:
    """States of the known ones among many calls."""
    rows = await pool.fetch(_OUTCOMES, [call_id for call_id in request.call_ids if is_call_id(call_id)])
    return CallOutcomesReply(
        calls=tuple(
            CallOutcome(call_id=str(row["id"]), state=row["state"], credits=to_text(row["credits"] or ZERO))
            for row in rows
        )
    )


def _view(row: asyncpg.Record, attempts: list[asyncpg.Record]) -> CallView:
    usage: dict[str, int | str] | None = None
    if row["usage_source"] is not None:
        used = usage_of(row)
        usage = {name: getattr(used, name) for name in COUNTS} | {"source": row["usage_source"]}
        if used.cache_write_1h_tokens:
            usage["cache_write_1h_tokens"] = used.cache_write_1h_tokens
        for piece in used.pieces:
            usage[" ".join(filter(None, (piece.unit, piece.size, piece.quality)))] = piece.amount
    return CallView(
        call_id=str(row["id"]),
        state=row["state"],
        outcome=row["outcome"],
        account=row["account"],
        user=row["user_did"],
        project=row["project"],
        key_id=row["key_id"],
        kind=row["kind"],
        dialect=row["dialect"],
        model=row["model"],
        provider=row["provider"],
        provider_model=row["provider_model"],
        credential=row["credential"],
        stream=row["stream"],
        hold=row["hold"],
        credits=row["credits"],
        overrun=row["overrun"],
        written_off=row["written_off"],
        usage=usage,
        error_code=row["error_code"],
        error_reason=row["error_reason"],
        duration_s=None if row["duration_s"] is None else f"{row['duration_s']:.1f}",
        first_byte_ms=row["first_byte_ms"],
        provider_first_byte_ms=row["provider_first_byte_ms"],
        trace_id=row["trace_id"],
        request_id=row["request_id"],
        created_at=iso_ms(row["created_at"]),
        settled_at=None if row["settled_at"] is None else iso_ms(row["settled_at"]),
        attempts=tuple(
            AttemptView(**{name: attempt[name] for name in AttemptView.model_fields}) for attempt in attempts
        ),
    )
