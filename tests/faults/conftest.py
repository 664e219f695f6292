"""One provider per module, and the scene mended before each test.

A module says by its fixture `whole_scene` what runs: `return await set_scene(counts={…}, env={…})`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path

import pytest
import pytest_asyncio
from rig.hub import started
from rig.provider import FakeProvider

from faults.clients import Payer
from faults.scene import QUICK, Scene

SetScene = Callable[..., Awaitable[Scene]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def set_scene(tmp_path_factory: pytest.TempPathFactory, template_folder: Path | None) -> AsyncIterator[SetScene]:
    """`await set_scene(counts={…}, env={…}, proxied=(…))`, once per module."""
    scenes: list[Scene] = []

    async def start(*, env: dict[str, str] | None = None, **options: object) -> Scene:
        provider = await FakeProvider().start()
        settings = {**QUICK, **provider.env("fake"), **(env or {})}
        root = tmp_path_factory.mktemp("faults") / "hub"
        hub = await started(root, template_folder, env=settings, **options)  # type: ignore[arg-type]
        scenes.append(await Scene.set(hub, provider))
        return scenes[-1]

    yield start
    for scene in scenes:
        await scene.close()
        await scene.provider.close()


@pytest_asyncio.fixture(loop_scope="session")
async def scene(whole_scene: Scene) -> Scene:
    await whole_scene.mend()
    return whole_scene


@pytest_asyncio.fixture(loop_scope="session")
async def payer(scene: Scene) -> Payer:
    return await scene.payer()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what each process wrote last."""
    report = yield
    scene = getattr(item, "funcargs", {}).get("scene")
    if report.failed and isinstance(scene, Scene):
        told = "\n".join(str(told) for payer in scene.payers for told in payer.journal)
        report.sections.append(("what clients were told", told))
        for name in scene.hub.processes.names:
            report.sections.append((f"log of {name}", "\n".join(scene.hub.log(name).splitlines()[-25:])))
    return report
