"""Two settled calls of one account on their way to subscribers: two meterings, a stream that can be wiped, the books.

A process learns by a mark (when the stream was made) which stream it publishes to. The books keep the mark with
"sent up to": a process that finds another stream sets "sent up to" back, and the events are published again.

Follows `metering/usage_events.py` and `metering.forward_usage_sent`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from model.explore import Protocol

LAST: Final = 2
"""Calls that are settled: sequences 1 and 2. Sets of sequences are bits."""
UNKNOWN: Final = -1


class Process(NamedTuple):
    """Memory of one metering."""

    under_way: int = 0
    acked: int = 0
    mark: int = 0


class Usage(NamedTuple):
    """Books, stream and two processes, which are alike."""

    seq: int = 0
    """Settled so far."""
    sent: int = 0
    ahead: int = 0
    """Stored behind a gap, as the books know it."""
    books_mark: int = 0
    stream_mark: int = 0
    stored: int = 0
    processes: tuple[Process, Process] = (Process(), Process())
    crashes: int = 0


@dataclass(frozen=True)
class Rules:
    """As built, unless a field weakens it."""

    crashes_max: int = 2
    wipes_max: int = 1

    over_gaps: bool = False
    """"Sent up to" follows the newest acknowledged event, as a cursor would."""
    sent_when_published: bool = False
    """An event counts as stored when it is on its way."""
    no_refill: bool = False
    """Another stream changes nothing in the books."""
    marks_not_compared: bool = False
    """Acknowledgements count whatever stream they are of."""
    ahead_kept: bool = False
    """Another stream sets "sent up to" back, but not what was stored ahead of it."""
    acks_kept: bool = False
    """A process keeps its acknowledgements when it finds another stream."""


def protocol(rules: Rules) -> Protocol[Usage]:
    """The protocol under these rules."""
    return Protocol(Usage(), partial(_steps, rules), _safety, _at_rest)


def bit(sequence: int) -> int:
    return 1 << (sequence - 1)


def _upto(sequence: int) -> int:
    return bit(sequence + 1) - 1


def _steps(rules: Rules, s: Usage) -> Iterator[tuple[str, Usage]]:
    for place, process in enumerate(s.processes):
        if place and process == s.processes[0]:
            break  # its twin does the same
        yield from _settling(s, place, process)
        yield from _publishing(rules, s, place, process)
        if process.acked and process.mark != UNKNOWN:
            after = _flushed(rules, s, place, process)
            yield "what is behind a gap is in the books" if after.ahead else "sent up to moves", after
        if process.mark != s.stream_mark:
            yield "metering finds another stream", _found(rules, s, place, process)
        if _upto(s.seq) & ~_upto(s.sent) & ~s.ahead and not process.under_way:
            missing = _upto(s.seq) & ~_upto(s.sent) & ~s.ahead
            yield "metering reads the books and publishes again", _with(s, place, process._replace(under_way=missing))
        if s.crashes < rules.crashes_max and process != Process(mark=UNKNOWN):
            yield "! metering dies", _with(s, place, Process(mark=UNKNOWN))._replace(crashes=s.crashes + 1)
    if s.stream_mark < rules.wipes_max and s.stored:
        yield "! the bus loses everything", s._replace(stream_mark=s.stream_mark + 1, stored=0)


def _settling(s: Usage, place: int, process: Process) -> Iterator[tuple[str, Usage]]:
    if s.seq < LAST:
        settled = s._replace(seq=s.seq + 1)
        mine = process._replace(under_way=process.under_way | bit(settled.seq))
        yield f"call {settled.seq} is settled", _with(settled, place, mine)
        yield f"! call {settled.seq} is settled, and the process does not know", settled


def _publishing(rules: Rules, s: Usage, place: int, process: Process) -> Iterator[tuple[str, Usage]]:
    for sequence in range(1, LAST + 1):
        if not process.under_way & bit(sequence):
            continue
        left = process._replace(under_way=process.under_way & ~bit(sequence))
        stored = s._replace(stored=s.stored | bit(sequence))
        known = left._replace(acked=left.acked | bit(sequence))
        yield f"event {sequence} stored, PubAck arrives", _with(stored, place, known)
        yield f"! event {sequence} stored, PubAck lost", _with(stored, place, left)
        yield f"! event {sequence} lost", _with(s, place, known if rules.sent_when_published else left)


def _flushed(rules: Rules, s: Usage, place: int, process: Process) -> Usage:
    """`metering.forward_usage_sent`: never over a gap, what is behind one stays in the books; only for this stream."""
    if process.mark != s.books_mark and not rules.marks_not_compared:
        return _with(s, place, process._replace(acked=0))
    stored = _upto(s.sent) | s.ahead | process.acked
    sent = s.sent
    while stored & bit(sent + 1):
        sent += 1
    if rules.over_gaps:
        sent = stored.bit_length()
    return _with(s, place, process._replace(acked=0))._replace(sent=sent, ahead=stored & ~_upto(sent))


def _found(rules: Rules, s: Usage, place: int, process: Process) -> Usage:
    kept = process.acked if rules.acks_kept else 0
    after = _with(s, place, Process(acked=kept, mark=s.stream_mark))
    if s.books_mark == s.stream_mark:
        return after
    if rules.no_refill:
        return after._replace(books_mark=s.stream_mark)
    return after._replace(books_mark=s.stream_mark, sent=0, ahead=s.ahead if rules.ahead_kept else 0)


def _with(s: Usage, place: int, process: Process) -> Usage:
    other = s.processes[1 - place]
    return s._replace(processes=(process, other) if process <= other else (other, process))


def _safety(s: Usage) -> str | None:
    if s.books_mark == s.stream_mark and _upto(s.sent) & ~s.stored:
        return "I9: sent up to covers an event that the stream does not have"
    return None


def _at_rest(s: Usage) -> str | None:
    if s.sent != s.seq:
        return "I4: a settled call is never announced"
    if s.stored != _upto(s.seq):
        return "I9: subscribers see a gap"
    return None
