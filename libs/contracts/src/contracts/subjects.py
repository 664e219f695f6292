"""Every subject, built by functions. No account, model or other user text stands in one.

`service` is gateway, provider-router, metering or janitor; `process` a process id (`contracts.ids.new_process_id`);
`kind` a call kind.
"""

from enum import StrEnum
from typing import Final

ROOT: Final = "hub.v1"


class CreditLevel(StrEnum):
    """What a balance has come to, or what has happened to it: the last token of a notice's subject."""

    LOW = "low"
    DEPLETED = "depleted"
    GRANTED = "granted"
    EXPIRED = "expired"


class CallKind(StrEnum):
    """What a call asks for: the last token of a fact's subject and the `type` column of a ModelCall."""

    CHAT = "chat"


INTERACTIVE: Final = "interactive"
"""The dispatch lane of calls that somebody waits for."""

CALLS_REQUESTED: Final = f"{ROOT}.calls.requested"
CALLS_COMPLETED: Final = f"{ROOT}.calls.completed"
CALLS_FAILED: Final = f"{ROOT}.calls.failed"
USAGE_RECORDED: Final = f"{ROOT}.usage.recorded"
CREDIT: Final = f"{ROOT}.credit"
CATALOG_CHANGED: Final = f"{ROOT}.catalog.changed"
IDENTITY_CHANGED: Final = f"{ROOT}.identity.changed"


def rpc(service: str, method: str) -> str:
    """Request/reply to whichever process of a service answers first; the queue group is the service's name."""
    return f"{ROOT}.rpc.{service}.{method}"


def dispatch(lane: str = INTERACTIVE) -> str:
    """One call to one provider-router; queue group `provider-router`."""
    return f"{ROOT}.dispatch.{lane}"


def cancel(router: str) -> str:
    """The gateway tells one router that a client has gone."""
    return f"{ROOT}.cancel.{router}"


def calls_requested(kind: CallKind) -> str:
    """Fact: a call was admitted and its hold reserved."""
    return f"{CALLS_REQUESTED}.{kind}"


def calls_completed(kind: CallKind) -> str:
    """Fact: a call delivered an answer, whole or cut short."""
    return f"{CALLS_COMPLETED}.{kind}"


def calls_failed(kind: CallKind) -> str:
    """Fact: a call ended without an answer that may be charged."""
    return f"{CALLS_FAILED}.{kind}"


def usage_recorded(kind: CallKind) -> str:
    """Fact: a call was settled; a CloudEvent for whoever subscribes."""
    return f"{USAGE_RECORDED}.{kind}"


def credit_notice(level: CreditLevel) -> str:
    """Fact: an account's balance has come to a level, or credits came or ended; a CloudEvent for whoever subscribes."""
    return f"{CREDIT}.{level}"


def frames(call_id: str) -> str:
    """Frames of a call whose answer is kept; memory storage only."""
    return f"{ROOT}.frames.{call_id}"


def inbox_prefix(service: str, process: str) -> str:
    """Root of everything that is addressed to one process."""
    return f"_INBOX.{service}.{process}"


def inbox_frames(gateway: str) -> str:
    """Packed frames from routers to one gateway."""
    return f"{inbox_prefix('gateway', gateway)}.frames"


def inbox_undispatched(gateway: str, number: int) -> str:
    """Reply subject of a dispatch: only the server's "no responders" comes back on it."""
    return f"{inbox_prefix('gateway', gateway)}.undispatched.{number}"


def inbox_alive(gateway: str) -> str:
    """A router's heartbeat to one gateway, sent as a request: "no responders" means that it is gone."""
    return f"{inbox_prefix('gateway', gateway)}.alive"


def inbox_parts(router: str) -> str:
    """Further parts of a body above `dispatch.PART_BYTES`, sent to the router that accepted the call."""
    return f"{inbox_prefix('provider-router', router)}.parts"


def inbox_settled(service: str, process: str) -> str:
    """Metering tells a gateway or a router which of its calls are settled."""
    return f"{inbox_prefix(service, process)}.settled"
