"""`hub credits convert`: balances and rates in another unit of credits."""

import asyncio
import time
from collections.abc import AsyncIterator
from decimal import Context, Decimal, localcontext
from typing import Annotated, Final

from cyclopts import Parameter

from contracts.money import to_text
from contracts.rpc import conversion, metering, payments
from hub_local.commands import grant_conversion, show
from hub_local.commands.session import UsageError, ask, connected, run
from runtime import rpc
from runtime.bus import Bus

Flag = Annotated[bool, Parameter(negative="")]
_LONG_S: Final = 60.0
_LOOK_S: Final = 1.0
_EXACT: Final = Context(prec=120)


def convert(price: str, *, apply: Flag = False, finish: Flag = False, wait: float = 700.0) -> None:
    """Multiply what accounts have and what models cost by the price of the old unit in the new one.

    Without an option it only shows what would become of each. With --apply calls are refused from then on; restart the
    hub with the settings of the new unit, then --finish admits them again. Whatever is cut short goes on when the same
    command is given again; nothing is converted twice. With Payment Kit its grants become grants of the meter in US
    dollars; a hub that counts in them already keeps its rates and needs neither a restart nor --finish.

    Args:
        price: new credits for one old credit, e.g. 0.0000025.
        apply: do it.
        finish: admit calls again.
        wait: seconds to wait for running calls to end.
    """
    if apply and finish:
        raise SystemExit("hub: give --apply first, restart with the new settings, then give --finish")
    if run(_has_payment_kit()):
        raise SystemExit(grant_conversion.convert(price, apply=apply, finish=finish, wait_s=wait))
    if finish:
        done = run(_finished(price))
        _sums(done)
        print(f"finished at {done.finished_at}: calls are admitted")
        raise SystemExit(1 if done.late else 0)
    problems = run(_applied(price, wait) if apply else _tried(price))
    raise SystemExit(1 if problems else 0)


async def _has_payment_kit() -> bool:
    status = await ask(
        metering.SERVICE, payments.PAYMENT_STATUS, payments.PaymentStatusGet(parked_max=0), payments.PaymentStatus
    )
    return status.is_on


async def _finished(price: str) -> conversion.Conversion:
    wanted = conversion.ConversionFinish(price=price)
    return await ask(metering.SERVICE, conversion.CONVERSION_FINISH, wanted, conversion.Conversion, _LONG_S)


async def _tried(price: str) -> int:
    """Show what would become of everything; returns how many accounts could not be converted now."""
    async with connected() as bus:
        rates = await grant_conversion.rates(bus, price, dry_run=True)
        accounts = [account async for account in _accounts(bus, price, dry_run=True)]
    _problems(accounts)
    with localcontext(_EXACT):
        before = sum((account.before for account in accounts), Decimal(0))
        after = sum((account.after for account in accounts), Decimal(0))
        lost = sum((Decimal(account.rounding) for account in accounts), Decimal(0))
    print(f"{len(accounts)} accounts: {to_text(before)} old credits would be {to_text(after)} new ones")
    print(f"rounding: {lost:f} in sum, at most {_largest(accounts):f} of one account")
    print(f"{rates.updated} rates would change; nothing was changed: --apply does it")
    return sum(bool(account.problem) for account in accounts)


async def _applied(price: str, wait_s: float) -> int:
    async with connected() as bus:
        await grant_conversion.rates(bus, price, dry_run=True)  # refused before calls are
        started = await _started(bus, price)
        if started.finished_at is not None:
            _sums(started)
            print("this conversion is finished; nothing was changed")
            return started.late
        print("calls are refused until --finish")
        await _at_rest(bus, price, wait_s)
        left = [account async for account in _accounts(bus, price, dry_run=False) if account.problem]
        _problems(left)
        done = await _started(bus, price)
        if not done.waiting:
            rates = await grant_conversion.rates(bus, price, dry_run=False)
            print(f"{rates.updated} rates changed, {rates.unchanged} had been")
    _sums(done)
    if done.waiting:
        print("give the same command again for the others")
    else:
        print("restart with the new unit (HUB_CREDIT_PRICE, HUB_CREDIT_LOW, welcome credits), then --finish")
    return done.waiting + done.late


async def _started(bus: Bus, price: str) -> conversion.Conversion:
    wanted = conversion.ConversionStart(price=price)
    return await rpc.ask(bus, metering.SERVICE, conversion.CONVERSION_START, wanted, conversion.Conversion, _LONG_S)


async def _at_rest(bus: Bus, price: str, wait_s: float) -> None:
    """Wait until every metering knows of the conversion and no call runs.

    Raises:
        UsageError: calls still run.
    """
    until = time.monotonic() + wait_s
    while True:
        standing = await _started(bus, price)
        if standing.is_known and not standing.running:
            return
        if time.monotonic() > until:
            raise UsageError(f"calls of {standing.running} accounts still run; give the same command again later")
        await asyncio.sleep(_LOOK_S)


async def _accounts(bus: Bus, price: str, *, dry_run: bool) -> AsyncIterator[conversion.ConvertedAccount]:
    after: str | None = ""
    while after is not None:
        wanted = conversion.ConversionAccounts(price=price, after=after, dry_run=dry_run)
        page = await rpc.ask(
            bus, metering.SERVICE, conversion.CONVERSION_ACCOUNTS, wanted, conversion.ConversionPage, _LONG_S
        )
        for account in page.accounts:
            yield account
        after = page.next_after


def _sums(done: conversion.Conversion) -> None:
    print(
        f"{done.converted} accounts converted, {done.waiting} wait: {done.before} old credits are {done.after} new ones"
    )
    print(f"rounding: {done.rounding} in sum")
    if done.late:
        print(f"{done.late} calls were admitted meanwhile: look at them with `hub calls list`")


def _problems(accounts: list[conversion.ConvertedAccount]) -> None:
    rows = [(account.account, account.problem) for account in accounts if account.problem]
    if rows:
        show.table(("account", "not converted"), rows)


def _largest(accounts: list[conversion.ConvertedAccount]) -> Decimal:
    return max((abs(Decimal(account.rounding)) for account in accounts), default=Decimal(0))
