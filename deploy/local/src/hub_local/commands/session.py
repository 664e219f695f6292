"""Asking the running hub as its operator."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from contracts.errors import HubError
from contracts.ids import new_process_id
from contracts.money import CreditsError
from contracts.permissions import OPERATOR
from contracts.rpc import identity
from contracts.subjects import inbox_prefix
from hub_local import state
from runtime import rpc
from runtime.bus import Bus

T = TypeVar("T")
A = TypeVar("A", bound=BaseModel)


class UsageError(Exception):
    """An argument that cannot be used; the text says why."""


def running() -> state.HubState:
    """The hub that runs on `HUB_DATA_DIR`.

    Raises:
        hub_local.state.NotRunningError: none does.
    """
    return state.read(Path(os.environ.get("HUB_DATA_DIR") or ".hub"))


@asynccontextmanager
async def connected() -> AsyncIterator[Bus]:
    """A bus as operator.

    Raises:
        hub_local.state.NotRunningError: no hub runs.
    """
    hub = running()
    bus = Bus()
    await bus.open(hub.nats_url, name="hub", inbox_prefix=inbox_prefix(OPERATOR, new_process_id("hub")))
    try:
        yield bus
    finally:
        await bus.close()


async def ask(service: str, method: str, request: BaseModel, reply: type[A], timeout_s: float = 5.0) -> A:
    """One question over a connection of its own.

    Raises:
        HubError: the service's refusal, or that it does not answer.
        hub_local.state.NotRunningError: no hub runs.
    """
    async with connected() as bus:
        return await rpc.ask(bus, service, method, request, reply, timeout_s)


async def first_owner() -> str:
    """DID of the user whom the first start made.

    Raises:
        UsageError: nobody owns this hub yet.
    """
    page = await ask(identity.SERVICE, identity.KEY_LIST, identity.KeyList(), identity.KeyPage)
    owners = [key.user for key in page.keys if key.role == "owner"]
    if not owners:
        raise UsageError("there is no owner yet: the first start makes one")
    return owners[-1]  # the list has the newest first


def run(work: Coroutine[Any, Any, T], failure: int = 1) -> T:
    """Run a command to its end; what it cannot do is said in one line, with exit code `failure`."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        return asyncio.run(work)
    except HubError as error:
        problem = error.message if error.param is None else f"{error.param}: {error.message}"
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (state.NotRunningError, UsageError, CreditsError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"the hub does not answer: {error}"
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    sys.stderr.write(f"hub: {problem}\n")
    raise SystemExit(failure)
