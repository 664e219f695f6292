"""`hub credits convert` where Payment Kit holds the grants, and `hub payments units`."""

import asyncio
from typing import Final

from contracts.rpc import catalog, conversion, metering, rate_changes
from contracts.rpc import grant_conversion as g
from hub_local.commands import show
from hub_local.commands.session import ask, connected, run
from runtime import rpc
from runtime.bus import Bus

_LONG_S: Final = 60.0
_LOOK_S: Final = 0.5


def convert(price: str, *, apply: bool, finish: bool, wait_s: float) -> int:
    """Move the grants of the older unit; returns the exit code."""
    if finish:
        done = run(ask(metering.SERVICE, g.GRANTS_CONVERT_FINISH, g.GrantsConvertFinish(), g.GrantsConversion, _LONG_S))
        _sums(done)
        print("calls are admitted, and charged in US dollars")
        return int(bool(done.late or done.errors))
    return run(_converted(price, wait_s) if apply else _tried(price))


def units() -> None:
    """Show the meters of both units at Payment Kit, and which grants are left in the older one."""
    told = run(ask(metering.SERVICE, g.GRANTS_UNIT, g.GrantsUnitGet(), g.GrantsUnit, _LONG_S))
    if not told.payment_running:
        print("Payment Kit does not answer, or this hub has none.")
        raise SystemExit(1)
    meters = [("older", told.old_meter), ("newer", told.new_meter)]
    show.table(
        ("unit", "meter", "name", "status", "currency", "places"),
        [
            (unit, meter.id, meter.name, meter.status, meter.currency_id, str(meter.decimal))
            if meter is not None
            else (unit, "none", "", "", "", "")
            for unit, meter in meters
        ],
    )
    print(f"this hub counts in the {'newer' if told.in_new_unit else 'older'} unit; a credit costs {told.credit_price}")
    print(f"{told.unmigrated_grants} of {told.total_grants} grants of the older unit can be converted")


async def rates(bus: Bus, price: str, *, dry_run: bool) -> rate_changes.RatesChanged:
    """Multiply all rates by the price, once per price.

    Raises:
        HubError: rates that begin later are written in the old unit, or provider-router does not answer.
    """
    wanted = conversion.RatesConvert(price=price, dry_run=dry_run)
    return await rpc.ask(bus, catalog.SERVICE, conversion.RATES_CONVERT, wanted, rate_changes.RatesChanged, _LONG_S)


async def _tried(price: str) -> int:
    async with connected() as bus:
        done = await _run(bus, g.GrantsConvert(price=price, dry_run=True))
        changed = await rates(bus, price, dry_run=True) if done.changes_unit else None
    _problems(done)
    if done.state == "failed":
        print(f"not told: {done.error}")
        return 1
    print(f"{done.migrated} of {done.total} grants: {done.before} old credits would be {done.after} new ones")
    if changed is not None:
        print(f"{changed.updated} rates would change")
    print("nothing was changed: --apply does it")
    return int(bool(done.errors))


async def _converted(price: str, wait_s: float) -> int:
    async with connected() as bus:
        told = await rpc.ask(bus, metering.SERVICE, g.GRANTS_UNIT, g.GrantsUnitGet(), g.GrantsUnit, _LONG_S)
        if not told.in_new_unit:
            await rates(bus, price, dry_run=True)  # refused before calls are
        done = await _run(bus, g.GrantsConvert(price=price, wait_s=wait_s))
        if done.state == "failed":
            print(f"no grant was moved, and calls are admitted: {done.error}")
            return 1
        _problems(done)
        _sums(done)
        if done.state == "finished":
            print(f"finished; left in the older unit: {done.errors} grants" if done.errors else "finished")
            return int(bool(done.errors or done.error))
        if done.error:
            print("calls are refused; give the same command again for the others")
            return 1
        changed = await rates(bus, price, dry_run=False)
    print(f"{changed.updated} rates changed, {changed.unchanged} had been")
    print("restart with HUB_PAYMENT_KIT_UNIT=USD and what else has a unit (HUB_CREDIT_PRICE, HUB_CREDIT_LOW,")
    print("welcome credits), then --finish: calls are refused until then")
    return int(bool(done.errors))


async def _run(bus: Bus, wanted: g.GrantsConvert) -> g.GrantsConversion:
    """Start it, or join it, and wait for its end. Metering goes on when we don't."""
    found = await rpc.ask(bus, metering.SERVICE, g.GRANTS_CONVERT, wanted, g.GrantsConversion, _LONG_S)
    while found.state == "running":
        await asyncio.sleep(_LOOK_S)
        asked = g.GrantsConversionGet(conversion_id=found.conversion_id)
        found = await rpc.ask(bus, metering.SERVICE, g.GRANTS_CONVERSION, asked, g.GrantsConversion, _LONG_S)
    return found


def _sums(done: g.GrantsConversion) -> None:
    print(
        f"{done.migrated} of {done.total} grants moved, {done.skipped} had nothing to move, {done.errors} stayed:"
        f" {done.before} old credits are {done.after} new ones"
    )
    if done.error:
        print(f"ended early: {done.error}")
    if done.late:
        print(f"{done.late} calls were admitted meanwhile: look at them with `hub calls list`")


def _problems(done: g.GrantsConversion) -> None:
    if done.problems:
        rows = [(one.grant_id, one.customer_id, one.problem) for one in done.problems]
        show.table(("grant", "customer", "not converted"), rows)
