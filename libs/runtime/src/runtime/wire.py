"""NATS' wire format, read in one pass for messages that a plain function listens to.

nats-py's parser matches a regular expression, moves its buffer and awaits for every message (3.4 µs each, this one
1.9). Here all whole messages of a read go to their listeners in a row; everything else (INFO, PING, +OK, errors,
messages of ordinary subscriptions) is left to nats-py's own parser, which this one extends.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

Deliver = Callable[[bytes, bytes, bytes, bytes | None], None]
"""subject, reply, payload, raw headers."""
_CRLF: Final = b"\r\n"
_MSG_TOKENS: Final = 4
"""`MSG subject sid size`; one more with a reply subject."""
_HMSG_TOKENS: Final = 5
"""`HMSG subject sid header-size size`; one more with a reply subject."""


class WireParser(Parser):
    """nats-py's parser with a way past it.

    Args:
        client: for nats-py's parser.
        listeners: by subscription id; what they raise is their own affair, they must not.
    """

    def __init__(self, client: Any, listeners: Mapping[int, Deliver]) -> None:
        self._listeners = listeners
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0
        super().__init__(client)

    def reset(self) -> None:
        """Forget what is half read: the connection is a new one."""
        super().reset()
        self._pieces = []
        self._have = self._need = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read from the server."""
        rest = self.take(data)
        if rest:
            await super().parse(rest)

    def take(self, data: bytes) -> bytes:
        """Give what was read to the listeners.

        Returns:
            The rest, which nats-py's `parse` must have before anything that is read later; mostly empty.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return b""
            data = b"".join(self._pieces)
            self._pieces = []
        elif self.buf or self.state != AWAITING_CONTROL_LINE:
            return data
        at = self._deliver(data)
        if at == len(data):
            return b""
        rest = data[at:] if at else data
        if self._need > 0:
            self._pieces = [rest]
            self._have = len(rest)
            return b""
        return rest

    def _deliver(self, data: bytes) -> int:
        """Give whole messages to their listeners, as far as there are any.

        Returns:
            Where the rest begins. If it is a listener's message that is not whole, `_need` is the length that it will
            have at least; else 0, and the rest is nats-py's.
        """
        at, end = 0, len(data)
        self._need = 0
        while at < end:
            headed = data.startswith(b"HMSG ", at)
            if not headed and not data.startswith(b"MSG ", at):
                break
            line_end = data.find(_CRLF, at)
            if line_end < 0:
                break
            tokens = data[at:line_end].split(b" ")
            if len(tokens) < _MSG_TOKENS or not tokens[2].isdigit() or not tokens[-1].isdigit():
                break  # nats-py's parser says what is wrong with it
            listener = self._listeners.get(int(tokens[2]))
            if listener is None:
                break
            begin = line_end + 2
            after = begin + int(tokens[-1])
            if after + 2 > end:
                self._need = after + 2 - at
                break
            plain = _HMSG_TOKENS if headed else _MSG_TOKENS
            reply = tokens[3] if len(tokens) > plain else b""
            if headed:
                body = begin + int(tokens[-2])
                listener(tokens[1], reply, data[body:after], data[begin:body])
            else:
                listener(tokens[1], reply, data[begin:after], None)
            at = after + 2
        return at
