"""Running one service: settings, logs, event loop, signals, exit code."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import structlog
import uvloop
from pydantic import ValidationError

from contracts.ids import new_process_id
from runtime import failpoints
from runtime.settings import ServiceSettings
from runtime.telemetry import configure_logging

S = TypeVar("S", bound=ServiceSettings)
App = Callable[[S, str], AbstractAsyncContextManager[None]]
"""Settings and process id → the running service; leaving the context drains and stops it."""

_CONFIGURATION_ERROR = 78
_GC_THRESHOLD = 50_000
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES_MAX = 32 * 2**20
"""mallopt(3): the highest threshold that glibc takes for its own map."""


def main(service: str, settings_type: type[S], app: App[S]) -> None:
    """Entry point of a service: `python -m <package> [--check]`.

    Exit codes: 0 after a clean stop, 78 when the settings are wrong, 1 otherwise.
    """
    try:
        settings = settings_type()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = "__".join(str(part) for part in problem["loc"])
            name = name if name.isupper() else f"HUB_{name.upper()}"  # upper case: an alias such as OPENAI_API_KEY
            sys.stderr.write(f"{service}: {name}: {problem['msg']}\n")
        raise SystemExit(_CONFIGURATION_ERROR) from None
    if "--check" in sys.argv[1:]:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return
    process = new_process_id(service)
    configure_logging(service, process, settings.log_level, settings.log_format)
    failpoints.arm(settings.fail)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_run(service, process, settings, app))
        except asyncio.CancelledError:
            structlog.get_logger(service).info("stopped before it had started")


async def _run(service: str, process: str, settings: S, app: App[S]) -> None:
    log = structlog.get_logger(service)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second signal exits now; the crash table covers it
        stop.set()
        if starting is not None:
            starting.cancel()  # it may be waiting for a server that is away

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with app(settings, process):
        starting = None
        _keep_freed_memory()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 20)
        log.info("started", pid=os.getpid())
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: buffers of large reads else go back to the kernel and come again page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES_MAX)


@asynccontextmanager
async def background(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the block and cancel it at the block's end; its failure ends the process, loudly.

    A loop that keeps leases or repeats outcomes must not die in silence: the supervisor starts the process again.
    """
    task = asyncio.create_task(work, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            structlog.get_logger("process").error("background work failed", work=name, exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task.add_done_callback(ended)
    try:
        yield
    finally:
        # Repeated: before Python 3.12 `wait_for`, also inside nats-py, loses a cancellation that comes with its result.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
