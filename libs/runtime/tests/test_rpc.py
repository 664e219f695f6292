"""Questions outside the bytes path: a FastStream responder, asked over a real server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from nats.errors import NoRespondersError

from contracts import permissions, subjects
from contracts.errors import ErrorCode, HubError
from contracts.ids import new_process_id
from contracts.rpc.metering import Balance, BalanceGet
from runtime import rpc

METHOD = "balance"
BALANCE = Balance.model_validate({"account": "a", "granted": "1", "spent": "0", "held": "0", "available": "1"})
Handler = Callable[[BalanceGet], Awaitable[Balance]]
Answering = Callable[[Handler], AbstractAsyncContextManager[None]]


@pytest.fixture
def answering(nats: Any) -> Answering:
    """Metering, as far as it answers one method."""

    @asynccontextmanager
    async def run(handler: Handler) -> AsyncIterator[None]:
        process = new_process_id("metering")
        broker = rpc.broker(
            nats.url(permissions.METERING), name=process, inbox_prefix=subjects.inbox_prefix("metering", process)
        )
        rpc.answer(broker, "metering", METHOD, BalanceGet, Balance, handler)
        await broker.start()
        try:
            await _heard(nats)
            yield
        finally:
            await broker.stop()

    return run


async def _heard(nats: Any) -> None:
    """Wait until the server knows of the responder: its subscription travels on a connection of its own."""
    bus = await nats.connect(permissions.JANITOR)
    async with asyncio.timeout(5):
        while True:
            try:
                await bus.call(subjects.rpc("metering", METHOD), b"", 5)
            except NoRespondersError:
                continue
            break
    await bus.close()


async def ask(nats: Any, account: str = "a") -> Balance:
    bus = await nats.connect(permissions.JANITOR)
    try:
        return await rpc.ask(bus, "metering", METHOD, BalanceGet(account=account), Balance, timeout_s=5)
    finally:
        await bus.close()


async def refusal(nats: Any) -> HubError:
    with pytest.raises(HubError) as refused:
        await ask(nats)
    return refused.value


async def test_answer_comes_back_as_the_model(nats: Any, answering: Answering) -> None:
    async def handler(question: BalanceGet) -> Balance:
        return BALANCE.model_copy(update={"account": question.account})

    async with answering(handler):
        assert await ask(nats, "did:abt:ü") == BALANCE.model_copy(update={"account": "did:abt:ü"})


async def test_refusal_comes_back_with_its_code_and_field(nats: Any, answering: Answering) -> None:
    async def handler(_: BalanceGet) -> Balance:
        raise HubError(ErrorCode.NOT_FOUND, "There is no such account.", param="account")

    async with answering(handler):
        error = await refusal(nats)
    assert (error.code, error.message, error.param) == (ErrorCode.NOT_FOUND, "There is no such account.", "account")


@pytest.mark.parametrize("failure", [TimeoutError(), OSError(), asyncpg.CannotConnectNowError("starting up")])
async def test_database_that_is_away_is_service_unavailable(
    nats: Any, answering: Answering, failure: Exception
) -> None:
    async def handler(_: BalanceGet) -> Balance:
        raise failure

    async with answering(handler):
        assert (await refusal(nats)).code is ErrorCode.SERVICE_UNAVAILABLE


async def test_bug_is_an_internal_error_that_tells_nothing(nats: Any, answering: Answering) -> None:
    async def handler(_: BalanceGet) -> Balance:
        raise LookupError("secret detail")

    async with answering(handler):
        error = await refusal(nats)
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert "secret" not in error.message


async def test_an_answer_that_cannot_be_written_is_an_internal_error_too(nats: Any, answering: Answering) -> None:
    async def handler(_: BalanceGet) -> Balance:
        return BALANCE.model_copy(update={"account": object()})

    async with answering(handler):
        assert (await refusal(nats)).code is ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize("question", [b"{}", b"nonsense", b"", b'{"account":7}', b"[]"])
async def test_question_that_does_not_validate_is_an_invalid_request(
    nats: Any, answering: Answering, question: bytes
) -> None:
    async def handler(_: BalanceGet) -> Balance:
        return BALANCE

    bus = await nats.connect(permissions.JANITOR)
    async with answering(handler):
        reply = await bus.call(subjects.rpc("metering", METHOD), question, 5)
    assert b'"code":"invalid_request"' in reply
    await bus.close()
