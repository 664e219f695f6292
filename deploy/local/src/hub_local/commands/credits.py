"""`hub credits`: what accounts have, and giving them more."""

import uuid
from typing import Literal

from contracts.money import parse, to_text
from contracts.rpc import identity, metering
from hub_local.commands import show
from hub_local.commands.session import ask, connected, run
from runtime import rpc


def balance(account: str | None = None) -> None:
    """Show what an account has; without one, of every user who has a key.

    Args:
        account: usually the user's DID.
    """
    balances = run(_balances(account))
    show.table(
        ("account", "available", "held", "spent", "granted"),
        [(b.account, to_text(b.available), to_text(b.held), to_text(b.spent), to_text(b.granted)) for b in balances],
    )


def grant(
    account: str,
    amount: str,
    *,
    category: Literal["welcome", "top_up", "adjustment", "promotional"] = "top_up",
    reason: str = "",
) -> None:
    """Give credits to an account.

    Args:
        account: usually the user's DID.
        amount: credits, a decimal number.
        category: what kind of grant it is.
        reason: for the books.
    """

    async def granted() -> metering.Balance:
        wanted = metering.Grant(
            grant_id=str(uuid.uuid4()),
            account=account,
            amount=parse(amount),
            category=category,
            reason=reason,
            granted_by="operator",
        )
        return await ask(metering.SERVICE, metering.GRANT, wanted, metering.Balance)

    after = run(granted())
    print(f"{account} has {to_text(after.available)} credits available")


async def _balances(account: str | None) -> list[metering.Balance]:
    async with connected() as bus:
        accounts = [account] if account is not None else []
        if account is None:
            page = await rpc.ask(bus, identity.SERVICE, identity.KEY_LIST, identity.KeyList(), identity.KeyPage)
            accounts = list(dict.fromkeys(key.user for key in page.keys))
        return [
            await rpc.ask(bus, metering.SERVICE, metering.BALANCE, metering.BalanceGet(account=one), metering.Balance)
            for one in accounts
        ]
