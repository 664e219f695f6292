"""Drop Idempotency-Keys that have expired, and notices of grants that were told long ago."""

from typing import Final

from contracts.rpc import metering, reconcile
from contracts.rpc.envelope import Empty
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "expired-claims"
_ASK_TIMEOUT_S: Final = 120.0


async def expire_claims(bus: Bus) -> str:
    """Ask metering to drop what has expired.

    Raises:
        HubError: metering does not answer.
    """
    gone = await rpc.ask(
        bus, metering.SERVICE, reconcile.EXPIRE_CLAIMS, Empty(), reconcile.ClaimsExpired, timeout_s=_ASK_TIMEOUT_S
    )
    return f"{gone.claims} keys, {gone.notices} notices dropped"
