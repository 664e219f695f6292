"""One hub for all journeys that need no setting of their own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from journeys.system import Caller, System, running


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def shared_system(
    tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None
) -> AsyncIterator[System]:
    """The hub and its providers, made once."""
    async with running(tmp_path_factory.mktemp("journeys") / "hub", template_folder) as system:
        yield system


@pytest.fixture
def system(shared_system: System) -> System:
    """The same, with honest providers and empty journals."""
    for provider in shared_system.providers:
        provider.forget()
    return shared_system


@pytest_asyncio.fixture(loop_scope="session")
async def caller(system: System) -> Caller:
    """Somebody new with credit."""
    return await system.caller()
