"""Times on the wire: ISO 8601, UTC, milliseconds."""

from datetime import datetime


def iso_ms(at: datetime) -> str:
    """`2026-11-25T09:30:00.123Z` of a time in UTC."""
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
