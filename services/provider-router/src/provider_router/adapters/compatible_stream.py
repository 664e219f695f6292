"""A stream of OpenAI's chat completion chunks, passed through.

JSON is read only from the first finish reason on. Until then a block of whole events leaves as it came, once
`plain_events` has found nothing in it that would end that.
"""

from typing import Any, Final

import msgspec

from contracts.usage import Usage, UsageSource
from provider_router import json_body, sse
from provider_router.adapters import chat_form, errors
from provider_router.adapters.adapter import Ending
from provider_router.adapters.plain_events import PlainEvents

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest stream that is relayed."""
_NOTHING: Final = (b"", b"null")


class Finish(msgspec.Struct, gc=False):
    """What is read of a choice."""

    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[Finish] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_HEAD: Final = msgspec.json.Decoder(chat_form.ChunkHead)


class CompatibleTranslation:
    """One stream, passed through; see `Translation`."""

    def __init__(self, *, include_usage: bool, choices: int) -> None:
        self._include_usage = include_usage
        self._single = choices == 1
        self._plain = PlainEvents()
        self._blocks = sse.EventBlocks()
        self._passed: list[bytes] = []
        self._bytes = 0
        self._held: list[bytes] = []
        self._reason: str | None = None
        self._open: set[int] = set()
        self._usage: bytes = b""
        self._usage_event: bytes = b""
        self._head: chat_form.ChunkHead | None = None
        self._done = False

    @property
    def complete(self) -> bool:
        """Whether `[DONE]` has come."""
        return self._done

    def feed(self, data: bytes) -> bytes:
        """Whole events that may go to the client, untouched. See `Translation`."""
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            raise errors.broken(f"The provider's stream is longer than {ANSWER_BYTES_MAX} bytes")
        try:
            block = self._blocks.feed(data)
        except sse.SseError as error:
            raise errors.broken("The provider's stream is broken") from error
        if not block or self._done:
            return b""
        if self._single and self._reason is None:
            end = self._plain.until(block)
            passed = block[:end] if end < len(block) else block
            if end < len(block):
                passed += self._read(block[end:])
        else:
            passed = self._read(block)
        if passed:
            self._passed.append(passed)
        return passed

    def _read(self, block: bytes) -> bytes:
        """Look into every event; returns those that need not be held back."""
        passed: list[bytes] = []
        for event in sse.split(block):
            if self._done:
                break
            data = b"\n".join(data for _, data in sse.decode(event))
            if data.strip() == b"[DONE]":
                self._done = True
            elif not data:
                (self._held if self._holding else passed).append(event + b"\n\n")
            else:
                self._chunk(event, data, passed)
        return b"".join(passed)

    @property
    def _holding(self) -> bool:
        return self._single and self._reason is not None

    def _chunk(self, event: bytes, data: bytes, passed: list[bytes]) -> None:
        try:
            chunk = _CHUNK.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise errors.broken("The provider's stream has an event that is no chat completion chunk") from error
        if bytes(chunk.error) not in _NOTHING:
            raise errors.broken("The provider reported an error in mid-stream", words(chunk.error))
        for choice in chunk.choices or ():
            if not choice.finish_reason:  # some providers write "" where others write null
                self._open.add(choice.index)
            else:
                self._open.discard(choice.index)
                self._reason = self._reason or choice.finish_reason
        used = bytes(chunk.usage) not in _NOTHING
        if used:
            self._usage = bytes(chunk.usage)
        if used and not chunk.choices:
            self._usage_event = event + b"\n\n"
        elif used and self._holding:
            # Usage in the last choice's chunk: it goes into a chunk of its own, as OpenAI sends it.
            fields = json_body.members(data)
            del fields["usage"]
            self._held.append(sse.event(json_body.joined(fields)))
        else:
            (self._held if self._holding else passed).append(event + b"\n\n")

    def end(self) -> Ending:
        """The tail; see `Translation`."""
        if not self._done and self._blocks.inside and self._blocks.rest.strip() != b"data: [DONE]":
            raise errors.broken("The provider's stream was cut off inside an event")
        if self._reason is None or self._open:
            raise errors.broken("The provider's stream ended without a finish reason")
        usage = chat_form.read_usage(self._usage)
        held = b"".join(self._held)
        outcome = chat_form.outcome(self._reason)
        if usage is None or not self._include_usage:
            return Ending(held + sse.DONE, None, usage, self._reason, outcome)
        brace = json_body.closing_brace(self._usage_event, self._usage) if self._usage_event else None
        if brace is None or usage.source is UsageSource.ESTIMATED:
            raw = self._usage if usage.source is UsageSource.REPORTED else chat_form.usage_object(usage)
            tail, splice_at = chat_form.stream_tail(held, self._chunk_head(), raw)
            return Ending(tail, splice_at, usage, self._reason, outcome)
        return Ending(held + self._usage_event + sse.DONE, len(held) + brace, usage, self._reason, outcome)

    def with_usage(self, ending: Ending, usage: Usage) -> Ending:
        """An ending without usage, with one; see `Translation`."""
        return chat_form.tail_with_usage(ending, self._chunk_head(), usage, include_usage=self._include_usage)

    def cut(self, finish_reason: str, details: str = "") -> bytes:
        """An early but proper end; see `Translation`."""
        head = self._chunk_head()
        open_choices = sorted(self._open) if self._open else [] if self._reason else [0]
        return b"".join(head.finish(index, finish_reason, details) for index in open_choices) + sse.DONE

    def delivered_text(self) -> str:
        """Text relayed so far; see `Translation`."""
        texts: list[str] = []
        for block in self._passed:
            for _, data in sse.decode(block):
                chunk: Any = msgspec.json.decode(data)
                if isinstance(chunk, dict) and isinstance(choices := chunk.get("choices"), list):
                    texts += (chat_form.message_text(choice.get("delta")) for choice in choices)
        return "".join(texts)

    def reported(self) -> Usage | None:
        """Usage that has come so far; see `Translation`."""
        return chat_form.read_usage(self._usage)

    def _chunk_head(self) -> chat_form.ChunkHead:
        if self._head is None:
            events = sse.decode((self._passed[0] if self._passed else b"") or b"".join(self._held[:1]))
            try:
                self._head = _HEAD.decode(events[0][1]) if events else chat_form.ChunkHead()
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                self._head = chat_form.ChunkHead()
        return self._head


def words(raw: msgspec.Raw) -> errors.ProviderWords:
    """What a member `error` says."""
    return errors.provider_words(msgspec.json.decode(raw))
