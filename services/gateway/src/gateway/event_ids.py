"""Numbers for the events of a stream, so that a client can say how far it came.

They count whole events from the first one on, whatever pieces the bytes come in: every gateway gives an event the same
number. It stands behind the event's own lines, since of several `id:` lines the last one counts, and a provider may
have sent one.
"""

from typing import Final

_END: Final = b"\n\n"


class EventIds:
    """Events in, events with an `id:` line out.

    Args:
        after: events up to this number are left out; the client has them.
    """

    def __init__(self, after: int = 0) -> None:
        self._after = after
        self._number = 0
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events among what has come so far; an event that is not whole waits for its rest."""
        *events, self._rest = (self._rest + data).split(_END)
        out: list[bytes] = []
        for event in events:
            text = event.lstrip(b"\n")
            if not text:
                continue
            self._number += 1
            if self._number > self._after:
                out.append(b"%b\nid: %d\n\n" % (text, self._number))
        return b"".join(out)
