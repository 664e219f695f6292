"""What past calls would have cost with other rates; reads the books, changes nothing."""

from typing import Any, Final

import asyncpg

from contracts.errors import ErrorCode, HubError
from contracts.money import ZERO
from contracts.rpc.catalog import frozen
from contracts.rpc.what_if import CALLS_MAX, WhatIf, WhatIfReply
from metering.pricing import COST_MAX, PricingError, cost
from metering.stored import usage_of
from runtime.postgres import Pool

_PAGE: Final = 500
"""Calls that are priced at once: a few milliseconds, in which nobody is charged."""
_CALLS: Final = """
select c.id, c.credits + c.overrun as cost, c.usage_source, c.units, c.input_tokens, c.output_tokens,
       c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens,
       c.provider || '/' || c.provider_model like $4 as fits
  from metering.model_call c
 where c.id >= metering.id_bound(now() - make_interval(days => $1)) and ($2::uuid is null or c.id < $2)
   and c.state = 'success'
 order by c.id desc limit $3
"""


async def what_if(pool: Pool, request: WhatIf) -> WhatIfReply:
    """Price past calls again.

    Raises:
        HubError: `invalid_request`, the rates are none.
    """
    rates = frozen(request.rates)
    like = request.pattern.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_").replace("*", "%")
    before: Any = None
    seen = calls = 0
    spent = would_cost = ZERO
    while seen < CALLS_MAX:
        rows: list[asyncpg.Record] = await pool.fetch(_CALLS, request.days, before, _PAGE, like)
        fitting = [row for row in rows if row["fits"]]
        calls += len(fitting)
        spent += sum((row["cost"] for row in fitting), ZERO)
        try:
            would_cost += sum((cost(usage_of(row), rates) for row in fitting), ZERO)
        except PricingError as error:
            raise HubError(ErrorCode.INVALID_REQUEST, f"{error}.", param="rates") from error
        seen += len(rows)
        if len(rows) < _PAGE:
            break
        before = rows[-1]["id"]
    return WhatIfReply(
        calls=calls, cost=min(spent, COST_MAX), would_cost=min(would_cost, COST_MAX), complete=seen < CALLS_MAX
    )
