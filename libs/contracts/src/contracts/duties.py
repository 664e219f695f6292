"""What lies in the bucket `DUTY_RUNS`, one key per duty: written by the janitor, read by operators."""

import msgspec


class DutyRun(msgspec.Struct, frozen=True):
    """The last run of one duty. Times are ISO 8601, UTC, of the clock of the janitor that ran it."""

    result: str
    """`done` or `failed`."""
    detail: str
    """What came of it, in a few words; no secret, no account."""
    ended_at: str
    next_at: str
    """When it is due again, unless another janitor takes it over later."""
    holder: str
    """Process id of the janitor."""
