"""Cool-downs shared by routers through a real bucket."""

import time

from rig.catalogs import CatalogRig
from rig.waiting import until

from contracts.errors import ErrorCode, HubError
from contracts.usage import Candidate, Rates
from provider_router import rpc
from provider_router.routing.health import Condition, condition

PROVIDERS = {name: {"base_url": f"https://{name}.example.com", "models": "m"} for name in ("one", "two")}
POOL = [Candidate("one", "m", Rates()), Candidate("two", "m", Rates())]


async def sees(router: rpc.Served, provider: str, wanted: Condition) -> None:
    async def seen() -> bool:
        return condition(router.routing.health(provider), time.monotonic()) is wanted

    await until(seen)


async def test_a_429_at_one_router_spares_the_provider_at_the_other(catalogs: CatalogRig) -> None:
    here, there = await catalogs.router(providers=PROVIDERS), await catalogs.router(providers=PROVIDERS)
    here.routing.failed("one", HubError(ErrorCode.UPSTREAM_RATE_LIMITED, ""), time.monotonic())
    await sees(there, "one", Condition.COOLING)
    for _ in range(4):
        assert [candidate.provider for candidate in there.routing.order(POOL, time.monotonic())] == ["two"]


async def test_failures_in_a_row_at_one_router_spare_the_provider_at_the_other(catalogs: CatalogRig) -> None:
    here, there = await catalogs.router(providers=PROVIDERS), await catalogs.router(providers=PROVIDERS)
    for _ in range(3):
        here.routing.failed("two", HubError(ErrorCode.UPSTREAM_TIMEOUT, ""), time.monotonic())
    await sees(there, "two", Condition.COOLING)


async def test_a_router_that_starts_later_knows_of_a_cool_down(catalogs: CatalogRig) -> None:
    here = await catalogs.router(providers=PROVIDERS)
    here.routing.failed("one", HubError(ErrorCode.UPSTREAM_RATE_LIMITED, ""), time.monotonic())
    second = await catalogs.router(providers=PROVIDERS)
    await sees(second, "one", Condition.COOLING)
    third = await catalogs.router(providers=PROVIDERS)
    await sees(third, "one", Condition.COOLING)


async def test_a_provider_that_is_well_again_is_well_everywhere(catalogs: CatalogRig) -> None:
    here, there = await catalogs.router(providers=PROVIDERS), await catalogs.router(providers=PROVIDERS)
    past = time.monotonic() - 100
    here.routing.failed("one", HubError(ErrorCode.UPSTREAM_RATE_LIMITED, "", retry_after_s=60), past)
    await sees(there, "one", Condition.PROBE)
    there.routing.succeeded("one", time.monotonic())
    await sees(here, "one", Condition.WELL)
