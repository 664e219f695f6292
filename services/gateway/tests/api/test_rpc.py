"""What gateway answers on the bus, asked by an operator; and what it asks of metering."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id, welcome_grant_id
from contracts.rpc import identity
from contracts.rpc.envelope import Empty
from gateway import rpc
from runtime.bus import Bus
from runtime.rpc import ask, broker


@pytest.fixture
async def operator(
    surface: Any, nats_url: Callable[[str], str], connect: Callable[[str], Awaitable[Bus]]
) -> AsyncIterator[Bus]:
    user = permissions.GATEWAY
    process = new_process_id(user)
    on = broker(nats_url(user), name=process, inbox_prefix=subjects.inbox_prefix(user, process))
    rpc.serve(on, surface.node.keys, surface.peers)
    await on.start()
    yield await connect(permissions.OPERATOR)
    await on.stop()


async def test_keys_are_made_listed_and_revoked_by_rpc(surface: Any, operator: Bus) -> None:
    request = identity.KeyCreate(name="ci", role="admin")
    made = await ask(operator, identity.SERVICE, identity.KEY_CREATE, request, identity.KeyCreated)
    assert (await surface.get("/v1/models", made)).status_code == 200
    page = await ask(operator, identity.SERVICE, identity.KEY_LIST, identity.KeyList(user=made.user), identity.KeyPage)
    assert [(key.key_id, key.name, key.role, key.revoked_at) for key in page.keys] == [
        (made.key_id, "ci", "admin", None)
    ]
    for _ in range(2):
        await ask(operator, identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id=made.key_id), Empty)
    assert (await surface.get("/v1/models", made)).status_code == 401


async def test_many_keys_are_made_with_accounts_of_the_asked_credit(surface: Any, operator: Bus) -> None:
    for asked, amount in ((None, "100"), ("2.5", "2.5")):
        request = identity.KeysCreate(count=20, welcome_credits=asked)
        made = await ask(operator, identity.SERVICE, identity.KEYS_CREATE, request, identity.KeysCreated)
        assert len(made.keys) == 20
        assert str(surface.books.opened[-1].amount.normalize()) in {amount, "1E+2"}
        assert set(surface.books.opened[-1].accounts) == {key.account for key in made.keys}


@pytest.mark.parity(65)
async def test_new_and_known_users_are_welcomed_with_their_keys(surface: Any) -> None:
    peers = rpc.Peers(surface.node.bus, Decimal(100), Decimal("2.5"), 30)
    known = await surface.key()
    assert surface.books.opened == []
    again = identity.KeyCreate(user=known.user)
    await surface.node.keys.create(again, "test", peers.welcome)
    new = await surface.node.keys.create(identity.KeyCreate(), "test", peers.welcome)
    assert [(asked.accounts, asked.amount) for asked in surface.books.opened] == [
        ((known.account,), Decimal("2.5")),
        ((new.account,), Decimal("2.5")),
    ]
    left = [asked.expires_at - datetime.now(UTC) for asked in surface.books.opened]
    assert all(timedelta(days=29) < time < timedelta(days=30) for time in left)


async def test_no_user_is_made_while_nobody_can_welcome_it(surface: Any) -> None:
    async def away(_account: str) -> None:
        raise HubError(ErrorCode.SERVICE_UNAVAILABLE, "metering does not answer")

    before = await surface.node.keys.listed(None)
    with pytest.raises(HubError):
        await surface.node.keys.create(identity.KeyCreate(), "test", away)
    assert await surface.node.keys.listed(None) == before


@pytest.mark.parametrize("asked", ["-1", "NaN", "a lot", "1e18"])
async def test_credits_out_of_their_domain_make_nothing(surface: Any, operator: Bus, asked: str) -> None:
    request = identity.KeysCreate(count=1, welcome_credits=asked)
    with pytest.raises(HubError) as caught:
        await ask(operator, identity.SERVICE, identity.KEYS_CREATE, request, identity.KeysCreated)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "welcome_credits")
    assert not surface.books.opened


async def test_revoking_an_unknown_key_says_so(operator: Bus) -> None:
    with pytest.raises(HubError) as caught:
        await ask(operator, identity.SERVICE, identity.KEY_REVOKE, identity.KeyRevoke(key_id="z1nothing"), Empty)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_the_welcome_grant_has_a_constant_id(surface: Any) -> None:
    for _ in range(2):
        await surface.peers.grant_welcome("z1someone", welcome_grant_id("z1someone"))
    first, second = surface.books.grants
    assert (first.grant_id, first.category, first.amount) == (second.grant_id, "welcome", 100)
    assert welcome_grant_id("z1other") != first.grant_id
