"""Webhooks of Payment Kit: signed by the application, believed in nothing but whom they are about.

An event is a hint that a balance may have changed: it is read again. So events that come twice, late or in another
order do no harm. One about a grant is a hint, too, that its owner may be told: the grant itself is fetched, and one
notice is booked for each that was given or has ended.
"""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

import structlog

from contracts.errors import ErrorCode, HubError
from contracts.rpc.payments import PaymentCallback, PaymentCallbackReply
from metering.payment_kit import records
from metering.payment_kit.amounts import AmountError, from_smallest
from metering.payment_kit.client import PaymentKit, PaymentKitError, part
from metering.payment_kit.meter import Meter, Meters
from metering.payment_kit.outbox import customer_did
from runtime.component_call import Verdict, judge
from runtime.postgres import Pool

_log = structlog.get_logger("payment_kit")
_ID_CHARS_MAX: Final = 200
_HINT: Final = """
with due as (
    select account from metering.payment_account where customer_id = $1 or did = $2 order by account for update
)
update metering.payment_account p set refresh_at = now() from due d where p.account = d.account returning p.account
"""
_TELL: Final = """
insert into metering.grant_notice (id, account, level, amount, grant_id, category, name, expires_at)
select u.id, u.account, $3, $4, $5, $6, $7, $8 from unnest($1::uuid[], $2::text[]) u(id, account)
on conflict do nothing
"""
_LEVELS: Final = {"granted": "granted", "depleted": "granted", "expired": "expired", "voided": "expired"}
"""What a grant's status tells: one that is used up was given before."""
_NAME_CHARS: Final = 200
_YEAR_10000: Final = 253_402_300_800


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Answers `payment_callback`."""

    kit: PaymentKit
    meters: Meters
    pool: Pool

    async def received(self, request: PaymentCallback) -> PaymentCallbackReply:
        """Judge the signature and note whose balance is to be read.

        Raises:
            HubError: `service_unavailable`: Payment Kit sends the event again.
            asyncpg.PostgresError, OSError, TimeoutError: so it does.
        """
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = request.body.encode()
        verdict = judge(self.kit.key.public, request.method, request.url, headers, body, int(time.time()))
        records.CALLBACKS.labels(verdict).inc()
        if verdict is Verdict.GOOD:
            await self._hint(body)
        return PaymentCallbackReply(verdict=str(verdict))

    async def _hint(self, body: bytes) -> None:
        event = json.loads(body) if body.strip() else None
        customer, kind = _customer(event), event.get("type") if isinstance(event, dict) else None
        if customer is None:
            _log.info("webhook without a customer", type=str(kind)[:60])
            return
        hinted = await self.pool.fetch(_HINT, customer, customer_did(customer))
        if not hinted and customer.startswith("cus_"):
            did = await self._did(customer)
            hinted = [] if did is None else await self.pool.fetch(_HINT, customer, did)
        _log.info("webhook", type=str(kind)[:60], accounts=len(hinted))
        grant_id = _object(event).get("id")
        if isinstance(grant_id, str) and grant_id.startswith("crdg_") and len(grant_id) <= _ID_CHARS_MAX and hinted:
            await self._tell(grant_id, [row["account"] for row in hinted])

    async def _tell(self, grant_id: str, accounts: list[str]) -> None:
        """Book the notice of a grant, as Payment Kit has it now."""
        try:
            meter = await self.meters.get()
            found = await self.kit.ask("GET", f"/api/credit-grants/{part(grant_id)}")
            notice = _notice(found, grant_id, meter)
        except PaymentKitError as error:
            _log.info("grant not told", reason=error.reason, status=error.status, detail=error.detail[:200])
            if error.transient:
                raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "Payment Kit does not answer; send it again.") from error
            return
        if notice is None:
            return
        level, amount, category, name, expires_at = notice
        ids = [uuid5(NAMESPACE_URL, f"{grant_id}:{level}:{account}") for account in accounts]
        await self.pool.execute(_TELL, ids, accounts, level, amount, grant_id, category, name, expires_at)

    async def _did(self, customer: str) -> str | None:
        """The DID of a customer whom we know by nothing else; None when Payment Kit does not say."""
        try:
            found = await self.kit.ask("GET", f"/api/customers/{part(customer)}")
        except PaymentKitError as error:
            _log.info("webhook for an unknown customer", reason=error.reason, status=error.status)
            return None
        did = found.get("did") if isinstance(found, dict) else None
        return customer_did(did) if isinstance(did, str) else None


def _notice(found: Any, grant_id: str, meter: Meter) -> tuple[str, Decimal, str, str, datetime | None] | None:
    """Level, credits, category, name and end of a grant; None when there is nothing to tell, or it is of another unit.

    Raises:
        PaymentKitError: an answer that is no such grant.
    """
    if not isinstance(found, dict) or found.get("id") != grant_id:
        raise PaymentKitError("no_grant", detail="an answer that is no grant")
    level = _LEVELS.get(str(found.get("status")))
    if level is None or found.get("currency_id") != meter.currency_id:
        return None
    try:
        amount = from_smallest(
            found.get("amount" if level == "granted" else "remaining_amount"), meter.places, owed=False
        )
    except AmountError as error:
        raise PaymentKitError("wrong_amount", detail=str(error)) from error
    if not amount:
        return None
    ends = found.get("expires_at")
    if not isinstance(ends, int) or not 0 < ends < _YEAR_10000:
        ends = None  # 0 or absent: never
    metadata = found["metadata"] if isinstance(found.get("metadata"), dict) else {}
    if metadata.get("migratedFromGrantId") or metadata.get("migratedTo"):
        return None  # only its unit has changed
    is_welcome = metadata.get("welcomeCredit") is True
    category = "welcome" if is_welcome else "paid" if found.get("category") == "paid" else "promotional"
    name = str(found.get("name") or "").replace("\x00", "")[:_NAME_CHARS]
    return level, amount, category, name, None if ends is None else datetime.fromtimestamp(ends, UTC)


def _object(event: Any) -> dict[str, Any]:
    """What an event is about; empty when it says nothing."""
    data = event.get("data") if isinstance(event, dict) else None
    thing = data.get("object") if isinstance(data, dict) else None
    return thing if isinstance(thing, dict) else {}


def _customer(event: Any) -> str | None:
    """Whom an event is about: its object's customer, or the object itself."""
    thing = _object(event)
    for name in ("customer_id", "customer", "id"):
        found = thing.get(name)
        if isinstance(found, dict):
            found = found.get("id")
        if isinstance(found, str) and 0 < len(found) <= _ID_CHARS_MAX and "\x00" not in found:
            if name == "id" and not found.startswith("cus_"):
                continue
            return found
    return None
