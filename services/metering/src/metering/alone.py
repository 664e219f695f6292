"""`python -m metering.alone [--with-outbox]`: settles the facts of stdin in order, and says on stdout how far it came.

A process of its own, for facts that may have killed the service: whoever reads stdout sees which one it was.
"""

import asyncio
import sys
from datetime import timedelta
from typing import Final

import asyncpg
import msgspec

from metering.events import Arrival, UnreadableFactError, read
from metering.settings import Settings
from metering.settle import lost
from metering.sql.store import TurnResult, TurnStore
from runtime import failpoints
from runtime.postgres import UNKNOWN_OUTCOME

_BAD_VALUE: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_ENCODE: Final = msgspec.json.Encoder().encode
WITH_OUTBOX: Final = "--with-outbox"
"""Every charge is also to be reported, as by the service itself."""


class Question(msgspec.Struct, frozen=True):
    """One line of stdin."""

    subject: str
    payload: bytes


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of stdout: what was just done with the fact of this place."""

    place: int
    step: str
    """`started` once, at place -1; of each fact `read`, then one of `settled`, `refused` (it can never be settled) and
    `unavailable` (ask again later)."""
    call_id: str = ""
    account: str = ""
    gateway: str = ""
    router: str = ""
    state: str = ""
    credits: str = ""
    detail: str = ""


def say(progress: Progress) -> None:
    """Out at once: the next step may be the last."""
    sys.stdout.buffer.write(_ENCODE(progress) + b"\n")
    sys.stdout.buffer.flush()


async def _settle(store: TurnStore, place: int, question: Question) -> None:
    try:
        fact = read(question.subject, question.payload)
    except UnreadableFactError as error:
        say(Progress(place, "refused", detail=f"unreadable: {error}"))
        return
    say(Progress(place, "read", fact.call_id, fact.account, fact.gateway, fact.router))
    try:
        result = await store.turn([Arrival(fact, question.subject, b"", question.payload)], [])
    except _BAD_VALUE as error:
        say(Progress(place, "refused", detail=f"bad_value: {error}"))
    except (*UNKNOWN_OUTCOME, asyncpg.PostgresError) as error:
        say(Progress(place, "unavailable", detail=type(error).__name__))
    else:
        say(_ended(place, result))


def _ended(place: int, result: TurnResult) -> Progress:
    for gone in lost(result):
        return Progress(place, "refused", detail=gone.reason)
    for settled in result.settled:
        return Progress(place, "settled", state=settled.arrival.fact.state, credits=settled.credits)
    (standing,) = result.standing
    return Progress(place, "settled", state=standing.state or "", credits=standing.credits)


async def _run(settings: Settings, *, with_outbox: bool) -> None:
    store = TurnStore(
        settings.database_url.get_secret_value(),
        timedelta(seconds=settings.lease_s),
        timedelta(seconds=settings.idempotency_s),
        with_outbox=with_outbox,
    )
    say(Progress(-1, "started"))
    try:
        for place, line in enumerate(sys.stdin.buffer.readlines()):
            await _settle(store, place, msgspec.json.decode(line, type=Question))
    finally:
        store.discard()


def main() -> None:
    """Settle what stdin has, then end."""
    settings = Settings()
    failpoints.arm(settings.fail)
    asyncio.run(_run(settings, with_outbox=WITH_OUTBOX in sys.argv[1:]))


if __name__ == "__main__":
    main()
