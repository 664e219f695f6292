"""Webhooks of Payment Kit: signed by the application, believed in nothing but whom they are about.

An event is a hint that a balance may have changed: it is read again. So events that come twice, late or in another
order do no harm.
"""

import json
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from contracts.rpc.metering import PaymentCallback, PaymentCallbackReply
from metering.payment_kit import records
from metering.payment_kit.client import PaymentKit, PaymentKitError, part
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


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Answers `payment_callback`."""

    kit: PaymentKit
    pool: Pool

    async def received(self, request: PaymentCallback) -> PaymentCallbackReply:
        """Judge the signature and note whose balance is to be read.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: Payment Kit sends the event again.
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

    async def _did(self, customer: str) -> str | None:
        """The DID of a customer whom we know by nothing else; None when Payment Kit does not say."""
        try:
            found = await self.kit.ask("GET", f"/api/customers/{part(customer)}")
        except PaymentKitError as error:
            _log.info("webhook for an unknown customer", reason=error.reason, status=error.status)
            return None
        did = found.get("did") if isinstance(found, dict) else None
        return customer_did(did) if isinstance(did, str) else None


def _customer(event: Any) -> str | None:
    """Whom an event is about: its object's customer, or the object itself."""
    data = event.get("data") if isinstance(event, dict) else None
    thing = data.get("object") if isinstance(data, dict) else None
    if not isinstance(thing, dict):
        return None
    for name in ("customer_id", "customer", "id"):
        found = thing.get(name)
        if isinstance(found, dict):
            found = found.get("id")
        if isinstance(found, str) and 0 < len(found) <= _ID_CHARS_MAX and "\x00" not in found:
            if name == "id" and not found.startswith("cus_"):
                continue
            return found
    return None
