"""Questions that gateway answers on the bus, and the ones it asks."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from faststream.nats import NatsBroker
from pydantic import BaseModel

from contracts.errors import ErrorCode, HubError
from contracts.events import CallState
from contracts.money import ZERO, CreditsError, parse
from contracts.rpc import catalog, identity, metering, model_calls, payments
from contracts.rpc.envelope import Empty
from gateway.identity.keys import Keys
from runtime.bus import Bus
from runtime.rpc import answer, ask

_OUTCOMES_S = 2.0
_LONG_S = 45.0
A = TypeVar("A", bound=BaseModel)
_WHO = "operator"
"""Who asks by RPC: nobody but operators has a bus user that may."""


def serve(on: NatsBroker, keys: Keys, peers: "Peers") -> None:
    """Subscribe every method; before the broker starts."""

    async def key_create(request: identity.KeyCreate) -> identity.KeyCreated:
        return await keys.create(request, _WHO, peers.welcome)

    async def keys_create(request: identity.KeysCreate) -> identity.KeysCreated:
        _check_credits(request.welcome_credits)
        return identity.KeysCreated(keys=tuple(await keys.create_many(request, _WHO, peers.open_accounts)))

    async def key_list(request: identity.KeyList) -> identity.KeyPage:
        return identity.KeyPage(keys=tuple(await keys.listed(request.user)))

    async def key_revoke(request: identity.KeyRevoke) -> Empty:
        await keys.revoke(request.key_id, _WHO)
        return Empty()

    answer(on, identity.SERVICE, identity.KEY_CREATE, identity.KeyCreate, identity.KeyCreated, key_create)
    answer(on, identity.SERVICE, identity.KEYS_CREATE, identity.KeysCreate, identity.KeysCreated, keys_create)
    answer(on, identity.SERVICE, identity.KEY_LIST, identity.KeyList, identity.KeyPage, key_list)
    answer(on, identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke, Empty, key_revoke)


class Peers:
    """What gateway asks metering and provider-router beside the bytes path.

    Every method raises HubError: the service's refusal, or `service_unavailable` when it does not answer.
    """

    def __init__(
        self, bus: Bus, welcome_credits: Decimal, new_user_credits: Decimal = ZERO, welcome_days: int = 0
    ) -> None:
        self._bus = bus
        self._welcome_credits = welcome_credits
        self._new_user_credits = new_user_credits
        self._welcome_days = welcome_days

    async def snapshot(self) -> catalog.Snapshot:
        """Providers, models and rates."""
        return await ask(self._bus, catalog.SERVICE, catalog.SNAPSHOT, catalog.SnapshotGet(), catalog.Snapshot)

    async def ask_catalog(self, method: str, request: BaseModel, reply: type[A], timeout_s: float = 5.0) -> A:
        """A question about rates, in the name of an administrator."""
        return await ask(self._bus, catalog.SERVICE, method, request, reply, timeout_s)

    async def call(self, call_id: str, account: str | None) -> model_calls.CallView:
        """A call; of this account only, unless None."""
        request = model_calls.CallGet(call_id=call_id, account=account)
        return await ask(self._bus, metering.SERVICE, model_calls.CALL_GET, request, model_calls.CallView)

    async def outcomes(self, call_ids: Sequence[str]) -> dict[str, metering.SettledCall]:
        """The closed ones among at most 1,000 calls, by id."""
        request = model_calls.CallOutcomes(call_ids=tuple(call_ids))
        reply = await ask(
            self._bus, metering.SERVICE, model_calls.CALL_OUTCOMES, request, model_calls.CallOutcomesReply, _OUTCOMES_S
        )
        return {
            call.call_id: metering.SettledCall(call.call_id, call.state, call.credits)
            for call in reply.calls
            if call.state != CallState.PROCESSING
        }

    async def balance(self, account: str) -> metering.Balance:
        """An account's balance; nothing for one that was never opened."""
        request = metering.BalanceGet(account=account)
        return await ask(self._bus, metering.SERVICE, metering.BALANCE, request, metering.Balance)

    async def payment_link(self) -> str | None:
        """Where metering says that users buy credits."""
        reply = payments.PaymentLink
        return (await ask(self._bus, metering.SERVICE, payments.PAYMENT_LINK, payments.PaymentLinkGet(), reply)).link

    async def payment_callback(self, request: payments.PaymentCallback) -> payments.PaymentCallbackReply:
        """What metering thinks of a webhook."""
        reply = payments.PaymentCallbackReply
        return await ask(self._bus, metering.SERVICE, payments.PAYMENT_CALLBACK, request, reply)

    async def open_accounts(self, accounts: Sequence[str], credits_each: Decimal | None) -> None:
        """Make accounts with a welcome grant each; None = the configured one."""
        amount = self._welcome_credits if credits_each is None else credits_each
        request = metering.AccountsOpen(
            accounts=tuple(accounts), amount=amount, granted_by=identity.SERVICE, expires_at=self._welcome_ends()
        )
        await ask(self._bus, metering.SERVICE, metering.ACCOUNTS_OPEN, request, metering.AccountsOpened, 30.0)

    async def welcome(self, account: str) -> None:
        """Open an account with the grant that new users get; one that was opened before is left alone."""
        if self._new_user_credits:
            await self.open_accounts((account,), self._new_user_credits)

    async def credit(self, method: str, request: BaseModel, reply: type[A]) -> A:
        """Ask metering something about credit (`contracts.rpc.credit`)."""
        return await ask(self._bus, metering.SERVICE, method, request, reply)

    async def long(self, method: str, request: BaseModel, reply: type[A]) -> A:
        """Ask metering something for which it may have to ask others."""
        return await ask(self._bus, metering.SERVICE, method, request, reply, _LONG_S)

    async def grant_welcome(self, account: str, grant_id: str) -> None:
        """Give an account its welcome grant; the same id again changes nothing."""
        request = metering.Grant(
            grant_id=grant_id,
            account=account,
            amount=self._welcome_credits,
            category="welcome",
            reason="welcome",
            granted_by=identity.SERVICE,
            expires_at=self._welcome_ends(),
        )
        await ask(self._bus, metering.SERVICE, metering.GRANT, request, metering.Balance)

    def _welcome_ends(self) -> datetime | None:
        return datetime.now(UTC) + timedelta(days=self._welcome_days) if self._welcome_days else None


def _check_credits(text: str | None) -> None:
    if text is not None:
        try:
            parse(text)
        except CreditsError as error:
            raise HubError(ErrorCode.INVALID_REQUEST, str(error), param="welcome_credits") from error
