"""Times as people write them on a command line."""

from datetime import UTC, datetime

from hub_local.commands.session import UsageError


def moment(option: str, text: str | None) -> datetime | None:
    """A time as people write it; UTC unless it says otherwise.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--{option} {text!r} is no time; write it as 2026-12-01 or 2026-12-01T08:00Z") from error
    return read if read.tzinfo else read.replace(tzinfo=UTC)
