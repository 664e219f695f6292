"""`hub credits`: what accounts have, and giving, taking and giving back."""

import uuid
from typing import Annotated, Literal

from cyclopts import Parameter

from contracts.money import parse, to_text
from contracts.rpc import credit, metering
from hub_local.commands import show
from hub_local.commands.moments import moment
from hub_local.commands.session import UsageError, ask, run

Flag = Annotated[bool, Parameter(negative="")]


def balance(account: str | None = None) -> None:
    """Show what an account has; without one, what each has.

    Args:
        account: usually the user's DID.
    """
    if account is None:
        list_accounts()
        return
    wanted = metering.BalanceGet(account=account)
    _balances([run(ask(metering.SERVICE, metering.BALANCE, wanted, metering.Balance))])


def list_accounts(*, contains: str = "", below: str | None = None, after: str = "", limit: int = 100) -> None:
    """List accounts and what they have, by id.

    Args:
        contains: only those whose id has this text.
        below: only those that have less credit than this left.
        after: an account: only those behind it.
        limit: how many, at most 1,000.
    """

    async def asked() -> credit.AccountsPage:
        floor = None if below is None else parse(below)
        wanted = credit.AccountsList(contains=contains, balance_below=floor, after=after, limit=limit)
        return await ask(metering.SERVICE, credit.ACCOUNTS_LIST, wanted, credit.AccountsPage)

    page = run(asked())
    _balances(list(page.accounts))
    if page.next_after is not None:
        print(f"more with --after {page.next_after}")


def grant(
    account: str,
    amount: str,
    *,
    category: Literal["welcome", "top_up", "adjustment", "promotional"] = "top_up",
    reason: str = "",
    name: str = "",
    priority: int = 50,
    starts: str | None = None,
    expires: str | None = None,
    id: str | None = None,  # noqa: A002 - the option's name
) -> None:
    """Give credits to an account.

    Args:
        account: usually the user's DID.
        amount: credits, a decimal number.
        category: what kind of grant it is.
        reason: for the books.
        name: what the user reads.
        priority: 0 to 100; lower ones are spent first.
        starts: when it begins, e.g. 2026-12-01 or 2026-12-01T08:00Z; at once when absent.
        expires: when what is unused ends, in the same form; never when absent.
        id: a UUID of your own: the same again changes nothing.
    """

    async def granted() -> metering.Balance:
        wanted = metering.Grant(
            grant_id=_id(id),
            account=account,
            amount=parse(amount),
            category=category,
            reason=reason,
            granted_by="operator",
            name=name,
            priority=priority,
            effective_at=moment("starts", starts),
            expires_at=moment("expires", expires),
        )
        after = await ask(metering.SERVICE, metering.GRANT, wanted, metering.Balance)
        print(f"grant {wanted.grant_id}")
        return after

    after = run(granted())
    print(f"{account} has {to_text(after.available)} credits available")


def adjust(
    account: str,
    amount: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    reason: str = "",
    expires: str | None = None,
    id: str | None = None,  # noqa: A002 - the option's name
) -> None:
    """Give credits or, with a number below 0, take them; no more than is free.

    Args:
        account: usually the user's DID.
        amount: credits, e.g. 5 or -2.5.
        reason: for the books.
        expires: when credits that are given end.
        id: a UUID of your own: the same again changes nothing.
    """

    async def adjusted() -> credit.CreditChanged:
        wanted = credit.Adjust(
            adjustment_id=_id(id),
            account=account,
            amount=amount,  # read by the model, which refuses what is no number
            reason=reason,
            made_by="operator",
            expires_at=moment("expires", expires),
        )
        return await ask(metering.SERVICE, credit.ADJUST, wanted, credit.CreditChanged)

    _show_change(run(adjusted()))


def refund(
    target: str,
    *,
    amount: str | None = None,
    grant: Flag = False,
    reason: str = "",
    expires: str | None = None,
    id: str | None = None,  # noqa: A002 - the option's name
) -> None:
    """Give the charge of a call back; with --grant, take unused credits of a grant back.

    Args:
        target: the call's id, or the grant's.
        amount: a part of it; all that is left when absent.
        grant: the target is a grant.
        reason: for the books.
        expires: when the credits of a charge end.
        id: a UUID of your own: the same again changes nothing.
    """

    async def refunded() -> credit.CreditChanged:
        part = None if amount is None else parse(amount)
        ends = moment("expires", expires)
        if not grant:
            of_call = credit.RefundCall(
                refund_id=_id(id), call_id=target, amount=part, reason=reason, made_by="operator", expires_at=ends
            )
            return await ask(metering.SERVICE, credit.REFUND_CALL, of_call, credit.CreditChanged)
        if ends is not None:
            raise UsageError("only credits of a charge can expire")
        of_grant = credit.RefundGrant(
            refund_id=_id(id), grant_id=target, amount=part, reason=reason, made_by="operator"
        )
        return await ask(metering.SERVICE, credit.REFUND_GRANT, of_grant, credit.CreditChanged)

    _show_change(run(refunded()))


def expire(grant_id: str, *, reason: str = "", id: str | None = None) -> None:  # noqa: A002 - the option's name
    """End a grant now.

    Args:
        grant_id: as `hub credits grants` shows it.
        reason: for the books.
        id: a UUID of your own: the same again changes nothing.
    """

    async def expired() -> credit.CreditChanged:
        wanted = credit.GrantExpire(expiry_id=_id(id), grant_id=grant_id, reason=reason, made_by="operator")
        return await ask(metering.SERVICE, credit.GRANT_EXPIRE, wanted, credit.CreditChanged)

    _show_change(run(expired()))


def _balances(balances: list[metering.Balance]) -> None:
    show.table(
        ("account", "available", "held", "spent", "granted", "pending", "grants", "next end"),
        [
            (
                b.account, to_text(b.available), to_text(b.held), to_text(b.spent), to_text(b.granted),
                to_text(b.pending), b.grants, b.next_expiry_at or "",
            )
            for b in balances
        ],
    )  # fmt: skip


def _show_change(done: credit.CreditChanged) -> None:
    entry = done.entry
    print(f"{entry.kind} {to_text(entry.amount)} ({entry.entry_id})")
    print(f"{entry.account} has {to_text(done.balance.available)} credits available")


def _id(given: str | None) -> str:
    return str(uuid.uuid4()) if given is None else given
