"""Which events of a stream of chat completion chunks need not be read: those without finish reason, usage or error.

Almost all events of a stream are alike but for the text they bring, so the first one is taken as a template. Events
that do not fit it are searched, a block at a time.
"""

import re
from itertools import repeat
from typing import Final

_FINISH: Final = b'"finish_reason"'
_NOT_FINISHED: Final = b'"finish_reason":null'
_CHOICES: Final = b'"choices":['
_DATA: Final = b"data: "
_BETWEEN: Final = b"\n\n" + _DATA
_PADDING: Final = b',"obfuscation":"'
"""OpenAI's protection against guessing by length: a random text in the last member of an event."""
_CLOSED: Final = b'"}'
_VALUE: Final = re.compile(rb"\s*:\s*(?!null|\s)")
_LAST_BYTES: Final = 32
"""Where a block that ends a stream says so."""


class PlainEvents:
    """Tells for one stream of one choice how many bytes of a block may go on unread."""

    __slots__ = ("_end", "_first", "_head", "_head_data", "_tail")

    def __init__(self) -> None:
        self._first = True
        self._head = b""
        self._head_data = b""
        self._tail = b""
        self._end = b""

    def until(self, block: bytes) -> int:
        """Where the first event of a block of whole events begins that must be read; the block's length if none."""
        if self._first:
            self._first = False
            self._learn(block[: block.find(b"\n\n")])
        if not self._head:
            return searched(block)
        at = block.rfind(self._end) + len(self._end)
        if at >= len(self._end) and self._all_fit(block[:at]):
            return at if at == len(block) else at + searched(block[at:])
        at, head, tail = 0, self._head, self._tail
        for event in block.split(b"\n\n"):
            if not event.startswith(head) or not (event.endswith(tail) or self._padded(event)):
                break
            at += len(event) + 2
        return at if at == len(block) else at + searched(block[at:])

    def _all_fit(self, block: bytes) -> bool:
        """Whether every event fits and has no padding, told without a step of our own for each."""
        events = block.removeprefix(_DATA).removesuffix(b"\n\n").split(_BETWEEN)
        return (
            all(map(bytes.startswith, events, repeat(self._head_data)))
            and all(map(bytes.endswith, events, repeat(self._tail)))
            and b"\n" not in b"".join(events)
        )

    def _learn(self, event: bytes) -> None:
        """Take what stands before the choice and after its finish reason from a plain event."""
        finish = event.rfind(_NOT_FINISHED)
        choices = event.find(_CHOICES)
        if 0 <= choices < finish and event.count(b"\n") == 0 and searched(event) == len(event):
            self._head = event[: choices + len(_CHOICES)]
            self._head_data = self._head.removeprefix(_DATA)
            padding = event.find(_PADDING, finish)
            self._tail = event[finish:] if padding < 0 else event[finish:padding] + b"}"
            self._end = self._tail + b"\n\n"

    def _padded(self, event: bytes) -> bool:
        """Whether an event fits but for a last member with random text."""
        padding = event.rfind(_PADDING)
        text = padding + len(_PADDING)
        return (
            padding > 0
            and event.endswith(self._tail[:-1], 0, padding)
            and event.endswith(_CLOSED)
            and event.find(b'"', text) == len(event) - len(_CLOSED)
        )


def searched(block: bytes) -> int:
    """The same as `PlainEvents.until`, by searches of the whole block.

    Quotes inside JSON strings are escaped, so these searches cannot hit text of the answer. A member that hides behind
    an escaped name is not found, and the stream then ends without a finish reason, which is an error.
    """
    if (
        b"[DONE]" not in block[-_LAST_BYTES:]
        and block.count(_FINISH) == block.count(_NOT_FINISHED)
        and block.count(b'"usage"') == block.count(b'"usage":null')
        and b'"error"' not in block
        and b"[DONE]" not in block
    ):
        return len(block)  # the middle of a stream, which most blocks are
    first = min(
        _first_value(block, _FINISH, _NOT_FINISHED),
        _first_value(block, b'"usage"', b'"usage":null'),
    )
    for text in (b'"error"', b"[DONE]"):
        at = block.find(text, 0, first)
        first = first if at < 0 else at
    if first == len(block):
        return first
    before = block.rfind(b"\n\n", 0, first)
    return 0 if before < 0 else before + 2


def _first_value(block: bytes, name: bytes, null: bytes) -> int:
    """Where a member first has a value other than null; the block's length when it never has.

    `null` is the spelling of the null that is counted; other spellings are looked at one by one. What is sought stands
    at the end of a stream, so the walk goes backwards.
    """
    others = block.count(name) - block.count(null)
    first = at = len(block)
    while others:
        at = block.rfind(name, 0, at)
        if block.startswith(null, at):
            continue
        others -= 1
        if _VALUE.match(block, at + len(name)):
            first = at
    return first
