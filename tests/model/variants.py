"""The protocol as built, and one weakened variant for each rule that holds it together."""

from dataclasses import dataclass
from typing import Any, Final

from model import call, outbox, usage
from model.explore import Protocol


@dataclass(frozen=True)
class Variant:
    """A protocol with its name."""

    name: str
    protocol: Protocol[Any]
    breaks: str = ""
    """What a weakened one violates."""

    def __str__(self) -> str:
        """As a test's id."""
        return self.name


def _call(name: str, breaks: str = "", **rules: Any) -> Variant:
    return Variant(name, call.protocol(call.Rules(**rules)), breaks)


def _usage(name: str, breaks: str = "", **rules: Any) -> Variant:
    return Variant(name, usage.protocol(usage.Rules(**rules)), breaks)


def _outbox(name: str, breaks: str = "", **rules: Any) -> Variant:
    return Variant(name, outbox.protocol(outbox.Rules(**rules)), breaks)


AS_BUILT: Final = (
    _call("one call, everything may fail", spools=True),
    _call("one call whose hold is raised", extends=True, losses_max=0),
    _call("one call that another router takes over", takeover=True, crashes_max=0, losses_max=0),
    _call("one call, nobody dies but metering", punctual=True, spools=True, extends=True),
    _usage("usage events, the bus is wiped twice", wipes_max=2, crashes_max=1),
    _outbox("outbox, the window passes", crashes_max=3),
)

WEAKENED: Final = (
    _call("no compare-and-set", "I1", no_compare=True),
    _call("a late success overwrites a failure", "I1", revive=True),
    _call("the janitor writes to the row", "I1", janitor_writes=True),
    _call("ack before the commit", "I1", ack_first=True),
    _call("ack before the commit, nobody dies but metering", "I1", ack_first=True, punctual=True),
    _call("call and hold in two transactions", "I2", two_transactions=True),
    _call("a repeated reserve holds again", "I2", reserve_again_holds=True),
    _call("a hold raised in any state", "I2", extends=True, extend_unchecked=True),
    _call("gateway told before the commit", "I5", tell_first=True),
    _call("final frame when the answer is whole", "I5", final_at_end=True),
    _call("final frame when the outcome is stored", "I5", final_when_stored=True),
    _call("the outcome published once and forgotten", "I6", publish_once=True, punctual=True),
    _call("a dispatch may travel twice", "I6", dispatch_redelivered=True),
    _call("no epoch compared", "closed by a fact of another epoch", no_epoch=True, takeover=True),
    _usage("sent up to follows the newest event", "I9", over_gaps=True),
    _usage("an event counts as stored when it is on its way", "I9", sent_when_published=True),
    _usage("a wiped stream is not refilled", "I9", no_refill=True),
    _usage("acks of a lost stream count", "I9", marks_not_compared=True),
    _usage("acks outlive their stream", "I9", acks_kept=True),
    _usage("what was stored ahead outlives its stream", "I9", ahead_kept=True),
    _outbox("an identifier for each POST", "I4", fresh_identifier=True),
    _outbox("sent before the POST", "I4", sent_first=True),
    _outbox("who settles posts", "I4", inline=True),
    _outbox("no look-up when the window may have passed", "I4", no_look_up=True),
    _outbox("the value computed when it is posted", "I4", value_recomputed=True),
)
