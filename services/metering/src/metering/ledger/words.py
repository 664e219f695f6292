"""What a notice says to the account's owner, in English and Chinese: ready to be shown, mailed or pushed."""

from typing import Final

from contracts.events import CreditNotice, NoticeText

LANGUAGES: Final = ("en", "zh")
_KINDS: Final = {
    "welcome": "welcome",
    "top_up": "bought",
    "paid": "bought",
    "refund": "refunded",
}
"""Of grants, by category; all others are simply given."""
_TITLES: Final[dict[str, tuple[str, str]]] = {
    "welcome": ("Welcome credits", "欢迎额度"),
    "bought": ("Credits added", "充值到账"),
    "refunded": ("Credits refunded", "额度已退还"),
    "given": ("Credits received", "收到额度"),
    "expired": ("Credits have expired", "额度已过期"),
    "low": ("Credits are running low", "额度不足提醒"),
    "depleted": ("Credits are used up", "额度已用完"),
}
_BODIES: Final[dict[str, tuple[str, str]]] = {
    "welcome": ("Welcome! {amount} credits are yours to begin with.", "欢迎！您已获得 {amount} 额度，可立即使用。"),
    "bought": ("Your purchase has arrived: {amount} credits.", "您购买的 {amount} 额度已到账。"),
    "refunded": ("{amount} credits were refunded to you.", "已退还 {amount} 额度。"),
    "given": ("You were given {amount} credits.", "您已获得 {amount} 额度。"),
    "expired": ("{amount} unused credits have expired.", "{amount} 未使用的额度已过期。"),
    "low": ("Only {balance} credits are left.", "您的额度仅剩 {balance}。"),
    "depleted": ("There are no credits left for further calls.", "您的额度已不足以继续调用。"),
}
_UNTIL: Final = (" They can be used until {day} (UTC).", "有效期至 {day}（UTC）。")
_BALANCE: Final = (" Your balance is {balance} credits.", "当前余额为 {balance} 额度。")
_BUY: Final = (" Add credits at {link}", "请在此充值：{link}")
_DAY_CHARS: Final = 10


def texts(notice: CreditNotice) -> dict[str, NoticeText]:
    """Title and body by language.

    Args:
        notice: complete but for its texts.
    """
    kind = notice.level if notice.level in _TITLES else _KINDS.get(notice.category, "given")
    return {language: _text(notice, kind, place) for place, language in enumerate(LANGUAGES)}


def _text(notice: CreditNotice, kind: str, place: int) -> NoticeText:
    parts = [_BODIES[kind][place]]
    is_given = notice.level == "granted"
    if is_given and notice.expires_at:
        parts.append(_UNTIL[place])
    if notice.balance and kind not in {"low", "depleted"}:
        parts.append(_BALANCE[place])
    if notice.link and not is_given:
        parts.append(_BUY[place])
    body = "".join(parts).format(
        amount=_short(notice.amount),
        balance=_short(notice.balance),
        day=notice.expires_at[:_DAY_CHARS],
        link=notice.link,
    )
    return NoticeText(title=_TITLES[kind][place], body=body)


def _short(credits_: str) -> str:
    """Without needless zeros."""
    return credits_.rstrip("0").rstrip(".") if "." in credits_ else credits_
