"""Make the partitions of the months ahead."""

from typing import Final

from contracts.rpc import metering, reconcile
from contracts.rpc.envelope import Empty
from runtime import rpc
from runtime.bus import Bus

NAME: Final = "partitions"
_ASK_TIMEOUT_S: Final = 30.0


async def make_partitions(bus: Bus) -> str:
    """Ask metering to make what is missing.

    Raises:
        HubError: metering does not answer, or could not take the lock within two seconds.
    """
    made = await rpc.ask(
        bus, metering.SERVICE, reconcile.MAKE_PARTITIONS, Empty(), reconcile.PartitionsMade, timeout_s=_ASK_TIMEOUT_S
    )
    return f"{len(made.partitions)} made"
