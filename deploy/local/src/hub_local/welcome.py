"""Whether the first owner can pay: the ready line shows a key whose first call has to succeed."""

import asyncio
from typing import Final, TypeVar

import nats.errors
from pydantic import BaseModel

from contracts.errors import HubError
from contracts.ids import new_process_id
from contracts.permissions import OPERATOR
from contracts.rpc import identity, metering
from contracts.rpc.envelope import Reply
from contracts.subjects import inbox_prefix, rpc
from runtime.bus import Bus

A = TypeVar("A", bound=BaseModel)
_POLL_S: Final = 0.1
_ANSWER_S: Final = 2.0


async def arrived(nats_url: str, within_s: float) -> bool:
    """Wait until the welcome grant of the first owner is in the books.

    Args:
        nats_url: the server, as operator.
        within_s: longest wait.

    Returns:
        Whether it came in time.
    """
    bus = Bus()
    try:
        async with asyncio.timeout(within_s):
            await bus.open(nats_url, name="hub", inbox_prefix=inbox_prefix(OPERATOR, new_process_id("hub")))
            while not await _is_granted(bus):  # noqa: ASYNC110 - metering tells nobody of a grant
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return False
    finally:
        await bus.close()
    return True


async def _is_granted(bus: Bus) -> bool:
    try:
        keys = await _ask(bus, identity.SERVICE, identity.KEY_LIST, identity.KeyList(), identity.KeyPage)
        owners = [key.user for key in keys.keys if key.role == "owner"]
        if not owners:
            return False
        request = metering.BalanceGet(account=owners[-1])
        balance = await _ask(bus, metering.SERVICE, metering.BALANCE, request, metering.Balance)
    except (HubError, nats.errors.Error, TimeoutError):
        return False  # a service that is still starting; the caller's deadline ends the asking
    return balance.granted > 0


async def _ask(bus: Bus, service: str, method: str, request: BaseModel, reply: type[A]) -> A:
    """As `runtime.rpc.ask`, which would bring FastStream into the supervisor: half a second of imports, 20 MB."""
    raw = await bus.call(rpc(service, method), request.model_dump_json().encode(), _ANSWER_S)
    return Reply[reply].model_validate_json(raw).unwrap()  # type: ignore[valid-type]
