"""Waiting for a thing instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    look: Callable[[], Awaitable[T]], *, within_s: float = 20.0, what: str = "", every_s: float = 0.02
) -> T:
    """The first truthy value of `look`; fails the test when none comes in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = await look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or look}; last seen: {value!r}")
        await asyncio.sleep(every_s)
