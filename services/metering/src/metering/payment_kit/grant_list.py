"""Grants as Payment Kit lists them.

No answer was recorded. The list may be bare or a member, with or without its whole count; a page may be shorter than
asked for, and filters may be ignored: so pages are read until one brings nothing new, and whoever asks looks at each
grant's own members. Customer and currency may be named by their id or as an object.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from metering.payment_kit.client import PaymentKit, PaymentKitError, part

_PAGE: Final = 100
_PAGES_MAX: Final = 10_000
_YEAR_10000: Final = 253_402_300_800
OPEN: Final = frozenset({"granted", "pending"})
"""States of a grant that can be spent, now or later."""


@dataclass(frozen=True, slots=True)
class ListedGrant:
    """What matters of a grant; members that are absent are empty."""

    id: str
    customer_id: str
    currency_id: str
    status: str
    remaining: Any
    """As it came: an integer string in the smallest unit."""
    name: str
    category: str
    priority: Any
    effective_at: int
    """Unix seconds; 0 = at once."""
    expires_at: int
    """Unix seconds; 0 = never."""
    metadata: dict[str, Any]

    @property
    def moved_to(self) -> str:
        """The grant that took its place; empty = none."""
        return str(self.metadata.get("migratedTo") or "")

    @property
    def moved_from(self) -> str:
        """The grant whose place it took; empty = none."""
        return str(self.metadata.get("migratedFromGrantId") or "")


def read(raw: Any) -> ListedGrant:
    """One grant of an answer.

    Raises:
        PaymentKitError: `no_grant`.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str) or not raw["id"]:
        raise PaymentKitError("no_grant", detail="an answer that is no grant")
    metadata = raw.get("metadata")
    return ListedGrant(
        id=raw["id"],
        customer_id=_named(raw, "customer_id", "customer"),
        currency_id=_named(raw, "currency_id", "paymentCurrency"),
        status=str(raw.get("status") or ""),
        remaining=raw.get("remaining_amount"),
        name=str(raw.get("name") or ""),
        category=str(raw.get("category") or ""),
        priority=raw.get("priority"),
        effective_at=_seconds(raw.get("effective_at")),
        expires_at=_seconds(raw.get("expires_at")),
        metadata=metadata if isinstance(metadata, dict) else {},
    )


async def one(kit: PaymentKit, grant_id: str) -> ListedGrant:
    """A grant by its id.

    Raises:
        PaymentKitError: Payment Kit does not answer, refuses, or answers with another thing.
    """
    found = read(await kit.ask("GET", f"/api/credit-grants/{part(grant_id)}"))
    if found.id != grant_id:
        raise PaymentKitError("no_grant", detail="an answer that is another grant")
    return found


async def pages(kit: PaymentKit, query: dict[str, str | int | None]) -> AsyncIterator[list[ListedGrant]]:
    """Grants page by page, each once.

    Args:
        kit: whose.
        query: `customer_id`, `currency_id`; members that are None are left out.

    Raises:
        PaymentKitError: the list could not be read to its end.
    """
    seen: set[str] = set()
    for page in range(1, _PAGES_MAX + 1):
        document = await kit.ask("GET", "/api/credit-grants", {**query, "page": page, "pageSize": _PAGE})
        count = document.get("count") if isinstance(document, dict) else None
        if isinstance(document, dict):
            document = document.get("list", document.get("data"))
        if not isinstance(document, list):
            raise PaymentKitError("no_list", detail="an answer that is no list of grants")
        fresh = [grant for grant in map(read, document) if grant.id not in seen]
        seen.update(grant.id for grant in fresh)
        if fresh:
            yield fresh
        if not fresh or (isinstance(count, int) and len(seen) >= count):
            return
    raise PaymentKitError("too_many_grants", detail="the list of grants has no end")


def _named(raw: dict[str, Any], name: str, thing: str) -> str:
    found = raw.get(name)
    if not isinstance(found, str):
        nested = raw.get(thing)
        found = nested.get("id") if isinstance(nested, dict) else nested
    return found if isinstance(found, str) else ""


def _seconds(value: Any) -> int:
    """Unix seconds of a time; 0 when there is none. Seconds are documented; texts of a time are read, too."""
    if isinstance(value, str) and not value.isdecimal():
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return 0
        return int(at.timestamp()) if at.tzinfo is not None else 0
    if isinstance(value, str):
        value = int(value[:15])
    return int(value) if isinstance(value, (int, float)) and 0 < value < _YEAR_10000 else 0
