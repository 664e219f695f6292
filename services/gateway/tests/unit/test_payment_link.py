"""What users are told about where to pay: the setting first, else the last that metering said."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from contracts.errors import ErrorCode, HubError
from gateway.payment_link import PaymentLink


def answering(*answers: str | HubError | None) -> Callable[[], Awaitable[str | None]]:
    """Each answer in its turn, then the last one again and again."""
    left = list(answers)

    async def ask() -> str | None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, HubError):
            raise answer
        return answer

    return ask


async def kept_fresh(link: PaymentLink, monkeypatch: pytest.MonkeyPatch, rounds: int) -> list[str | None]:
    """What is told after each question."""
    told: list[str | None] = []

    async def sleep(_seconds: float) -> None:
        told.append(link.current())
        if len(told) == rounds:
            raise asyncio.CancelledError

    monkeypatch.setattr("gateway.payment_link.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await link.keep_fresh()
    return told


@pytest.mark.parity(67)
async def test_the_last_link_that_was_known_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    away = HubError(ErrorCode.SERVICE_UNAVAILABLE, "away")
    link = PaymentLink(None, answering(away, None, "https://pay/1", away, None, "https://pay/2"))
    told = await kept_fresh(link, monkeypatch, 6)
    assert told == [None, None, "https://pay/1", "https://pay/1", "https://pay/1", "https://pay/2"]


async def test_a_link_of_the_setting_is_told_at_once_and_nobody_is_asked() -> None:
    link = PaymentLink("https://shop/credits", answering(HubError(ErrorCode.CONFLICT, "asked")))
    await link.keep_fresh()
    assert link.current() == "https://shop/credits"


async def test_a_path_is_metering_s_to_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    link = PaymentLink("/checkout/pay/plink_1", answering("https://pay/checkout/pay/plink_1"))
    assert link.current() is None
    assert await kept_fresh(link, monkeypatch, 1) == ["https://pay/checkout/pay/plink_1"]
