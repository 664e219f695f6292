"""Server-sent events: whole events cut out of a byte stream, untouched for pass-through or decoded."""

from typing import Final

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest incomplete event that is held in memory."""
_BOM: Final = b"\xef\xbb\xbf"


class SseError(ValueError):
    """An event is longer than its bound."""


class EventBlocks:
    """Bytes in, blocks of whole events out; an event is whole once its blank line has come.

    Blocks keep their bytes, except that every line ends in LF (a CR in an event stream is always a line end) and that
    a byte order mark at the beginning is gone.

    Args:
        event_bytes_max: bound of what is held while an event is incomplete.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = event_bytes_max
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ends_line = False
        self._begin: bytes | None = b""
        self._skip_newline = False

    @property
    def inside(self) -> bool:
        """Whether an event has begun that is not whole."""
        return any(piece.strip(b"\n") for piece in self._held) or bool(self._begin)

    @property
    def rest(self) -> bytes:
        """What is held of an event that is not whole."""
        return b"".join(self._held)

    def feed(self, data: bytes) -> bytes:
        """Whole events among what has come so far; empty when none is.

        Raises:
            SseError: an event is longer than the bound.
        """
        if self._begin is not None or self._skip_newline or b"\r" in data:
            data = self._normal(data)
        if not self._held:
            if data.endswith(b"\n\n"):
                return data
        elif b"\n\n" in data or (self._ends_line and data.startswith(b"\n")):
            data = b"".join((*self._held, data))
            self._held.clear()
            self._held_bytes = 0
        else:
            return self._hold(data)
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            return self._hold(data)
        self._hold(data[end:])
        return data[:end]

    def _hold(self, data: bytes) -> bytes:
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
            self._ends_line = data.endswith(b"\n")
            if self._held_bytes > self._max:
                raise SseError(f"an event is longer than {self._max} bytes")
        return b""

    def _normal(self, data: bytes) -> bytes:
        if self._begin is not None:
            data = self._begin + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._begin = data
                return b""
            self._begin = None
            data = data.removeprefix(_BOM)
        if self._skip_newline and data:
            data = data.removeprefix(b"\n")
            self._skip_newline = False
        if data.endswith(b"\r"):
            # Half of a CR LF, or a line end of its own: the line is over either way, a line feed to come is skipped.
            self._skip_newline = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


class EventDecoder:
    """Bytes in, events out as (name, data); the name is `message` when none is given.

    Args:
        event_bytes_max: bound of one event.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._blocks = EventBlocks(event_bytes_max)

    @property
    def inside(self) -> bool:
        """Whether an event has begun that is not whole."""
        return self._blocks.inside

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Events that these bytes complete.

        Raises:
            SseError: an event is longer than the bound.
        """
        return decode(self._blocks.feed(data))


def decode(block: bytes) -> list[tuple[str, bytes]]:
    """The events of a block that `EventBlocks` gave; comments, ids and unknown fields are passed over."""
    events: list[tuple[str, bytes]] = []
    for text in split(block):
        name = b"message"
        data: list[bytes] = []
        for line in text.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ") or b"message"
        if data:
            events.append((name.decode("utf-8", "replace"), b"\n".join(data)))
    return events


def split(block: bytes) -> list[bytes]:
    """The events of a block as they stand, each without its blank line."""
    return [text for text in block.split(b"\n\n") if text.strip(b"\n")]


def event(data: bytes) -> bytes:
    """One event without a name."""
    return b"data: " + data + b"\n\n"


DONE: Final = event(b"[DONE]")
"""How OpenAI's streams end."""
