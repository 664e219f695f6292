"""One hub for all journeys that need no setting of their own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from journeys.system import Caller, System, running

_FAILED: pytest.StashKey[bool] = pytest.StashKey()
_LOG_CHARS_MAX = 4000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember which tests failed, for `system`."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.stash[_FAILED] = True
    return report  # type: ignore[return-value]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def shared_system(
    tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None
) -> AsyncIterator[System]:
    """The hub and its providers, made once."""
    async with running(tmp_path_factory.mktemp("journeys") / "hub", template_folder) as system:
        yield system


@pytest.fixture
def system(shared_system: System, request: pytest.FixtureRequest) -> Iterator[System]:
    """The same, with honest providers and empty journals; a test that fails shows what services wrote meanwhile."""
    for provider in shared_system.providers:
        provider.forget()
    names = shared_system.hub.processes.names
    before = {name: len(shared_system.hub.log(name)) for name in names}
    yield shared_system
    if request.node.stash.get(_FAILED, False):
        for name in names:
            print(f"--- {name}\n{shared_system.hub.log(name)[before[name] :][-_LOG_CHARS_MAX:]}")


@pytest_asyncio.fixture(loop_scope="session")
async def caller(system: System) -> Caller:
    """Somebody new with credit."""
    return await system.caller()
