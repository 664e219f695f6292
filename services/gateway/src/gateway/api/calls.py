"""`GET /api/v2/calls/{id}`: what became of a call."""

from contracts.errors import ErrorCode, HubError
from contracts.ids import is_call_id
from contracts.rpc.model_calls import CallView
from gateway.api.services import Caller, Used
from gateway.auth.roles import is_admin


async def one(call_id: str, used: Used, principal: Caller) -> CallView:
    """A call of the caller's account; owners and administrators see all.

    A foreign call is not found: nothing tells that it exists. Which credential a provider was called with only
    owners and administrators see.
    """
    if not is_call_id(call_id):
        raise HubError(ErrorCode.NOT_FOUND, "There is no such call.", param="call_id")
    if is_admin(principal.role):
        return await used.peers.call(call_id, None)
    view = await used.peers.call(call_id, principal.account)
    attempts = tuple(attempt.model_copy(update={"credential": ""}) for attempt in view.attempts)
    return view.model_copy(update={"credential": None, "attempts": attempts})
