"""`hub credits`: what became of an account's credit."""

from datetime import UTC, datetime

from contracts.money import to_text
from contracts.rpc import credit, metering
from hub_local.commands import show
from hub_local.commands.moments import moment
from hub_local.commands.session import ask, run


def grants(account: str, *, status: credit.GrantStatus | None = None, page: int = 1, limit: int = 20) -> None:
    """List an account's grants and what is left of each, newest first.

    Args:
        account: usually the user's DID.
        status: only these.
        page: which page.
        limit: grants of a page, at most 100.
    """

    async def asked() -> credit.GrantsPage:
        wanted = credit.GrantsList(account=account, status=status, page=page, page_size=limit)
        return await ask(metering.SERVICE, credit.GRANTS_LIST, wanted, credit.GrantsPage)

    found = run(asked())
    show.table(
        ("grant", "status", "amount", "left", "category", "priority", "begins", "ends", "name", "reason", "by"),
        [
            (
                g.grant_id, g.status, to_text(g.amount), to_text(g.remaining), g.category, g.priority, g.effective_at,
                g.expires_at or "", g.name, g.reason, g.granted_by,
            )
            for g in found.grants
        ],
    )  # fmt: skip


def transactions(
    account: str,
    *,
    kind: credit.TransactionKind | None = None,
    start: str | None = None,
    end: str | None = None,
    page: int = 1,
    limit: int = 20,
) -> None:
    """List charges and what was given or taken, newest first, with the balance after each.

    Args:
        account: usually the user's DID.
        kind: only these.
        start: from this time on, e.g. 2026-12-01.
        end: before this time.
        page: which page.
        limit: transactions of a page, at most 100.
    """

    async def asked() -> credit.TransactionsPage:
        wanted = credit.TransactionsList(
            account=account,
            kind=kind,
            start=moment("start", start),
            end=moment("end", end),
            page=page,
            page_size=limit,
        )
        return await ask(metering.SERVICE, credit.TRANSACTIONS, wanted, credit.TransactionsPage)

    found = run(asked())
    show.table(
        ("at", "kind", "amount", "balance", "id", "model", "reason", "by"),
        [
            (t.at, t.kind, to_text(t.amount), to_text(t.balance), t.transaction_id, t.model or "", t.reason, t.made_by)
            for t in found.transactions
        ],
    )


def statement(account: str, month: str | None = None) -> None:
    """Show an account's month: what was there, what came, what went, what is left.

    Args:
        account: usually the user's DID.
        month: as in 2026-11, UTC; this one when absent.
    """

    async def asked() -> credit.Statement:
        wanted = credit.StatementGet(account=account, month=month or f"{datetime.now(UTC):%Y-%m}")
        return await ask(metering.SERVICE, credit.STATEMENT, wanted, credit.Statement)

    found = run(asked())
    amounts = ("opening", "granted", "adjusted", "refunded", "expired", "withdrawn", "charged", "closing", "difference")
    show.record(
        {"account": found.account, "month": found.month}
        | {name: to_text(getattr(found, name)) for name in amounts}
        | {"charges": found.charges, "entries": found.entries}
    )
