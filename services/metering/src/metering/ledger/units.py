"""Charges of before a conversion stay in the unit of then: nothing of them can be given back in another one."""

from typing import TYPE_CHECKING, Final

from contracts.errors import ErrorCode, HubError

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_IS_OLD: Final = """
select $1::uuid < metering.unit_bound() or exists (
    select from metering.model_call m join metering.conversion_account d on d.account = m.account
    where m.id = $1::uuid and m.id < metering.id_bound(d.at)
)
"""


async def check_unit(connection: "Connection", call_id: object) -> None:
    """Refuse to change what a call was charged before its account was converted.

    Raises:
        HubError: `conflict`.
    """
    if await connection.fetchval(_IS_OLD, call_id):
        raise HubError(
            ErrorCode.CONFLICT,
            "This call was charged in the unit of before the conversion; give credits by an adjustment instead.",
            param="call_id",
        )
