"""Notices say the same in both languages, with the figures of the event and nothing else."""

import msgspec
import pytest

from contracts.events import CreditNotice
from contracts.subjects import CreditLevel
from metering.ledger.words import LANGUAGES, texts


def notice(level: str, **more: str) -> CreditNotice:
    values = {"balance": "7.5000000000", "amount": "2.2500000000", "expires_at": "2026-12-24T08:00:00.000Z"} | more
    told = CreditNotice(account="did:a", number=1, level=level, threshold="1", balance="", noticed_at="")
    return msgspec.structs.replace(told, **values)


@pytest.mark.parity(66)
@pytest.mark.parametrize("level", CreditLevel)
@pytest.mark.parametrize("category", ["welcome", "top_up", "paid", "promotional", "adjustment", "refund", "new", ""])
def test_every_notice_has_a_title_and_figures_in_english_and_chinese(level: str, category: str) -> None:
    told = texts(notice(level, category=category, link="https://pay/1"))
    assert tuple(told) == LANGUAGES == ("en", "zh")
    for text in told.values():
        assert text.title
        assert ("2.25" in text.body) == (level in {"granted", "expired"})
        assert ("7.5" in text.body) == (level != "depleted")
        assert ("2026-12-24" in text.body) == (level == "granted")
        assert ("https://pay/1" in text.body) == (level != "granted")
        assert "{" not in text.body


def test_welcomes_purchases_and_gifts_are_told_apart() -> None:
    titles = {category: texts(notice("granted", category=category))["en"].title for category in ("welcome", "paid", "")}
    assert len(set(titles.values())) == 3
    assert texts(notice("granted", category="top_up"))["zh"] == texts(notice("granted", category="paid"))["zh"]


def test_what_is_not_known_is_left_out() -> None:
    told = texts(notice("granted", balance="", expires_at="", amount="100"))
    assert told["en"].body == "You were given 100 credits."
    assert told["zh"].body == "您已获得 100 额度。"
    assert "://" not in texts(notice("low"))["en"].body


def test_names_and_links_are_never_read_as_patterns() -> None:
    assert "{amount}" in texts(notice("low", link="https://pay/{amount}"))["en"].body
