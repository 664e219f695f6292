"""What is answered about Payment Kit where there is none."""

from decimal import Decimal

from contracts.errors import ErrorCode, HubError
from contracts.money import to_text
from contracts.rpc.grant_conversion import (
    GrantsConversion,
    GrantsConversionGet,
    GrantsConvert,
    GrantsConvertFinish,
    GrantsUnit,
    GrantsUnitGet,
)
from contracts.rpc.payments import (
    PaymentCallback,
    PaymentCallbackReply,
    PaymentLink,
    PaymentLinkGet,
    PaymentPause,
    PaymentRetried,
    PaymentRetry,
    PaymentStatus,
    PaymentStatusGet,
)


async def status(_request: PaymentStatusGet) -> PaymentStatus:
    """It is off."""
    return PaymentStatus(is_on=False)


async def link(configured: str | None, _request: PaymentLinkGet) -> PaymentLink:
    """The link of the setting, if there is one."""
    return PaymentLink(link=configured)


async def received(_request: PaymentCallback) -> PaymentCallbackReply:
    """Refuses a webhook: nobody signed up for one."""
    raise _off()


async def pause(_request: PaymentPause) -> PaymentStatus:
    """Refuses."""
    raise _off()


async def retry(_request: PaymentRetry) -> PaymentRetried:
    """Refuses."""
    raise _off()


async def unit(credit_price: Decimal, _request: GrantsUnitGet) -> GrantsUnit:
    """There are no meters."""
    return GrantsUnit(payment_running=False, credit_price=to_text(credit_price))


async def convert(_request: GrantsConvert) -> GrantsConversion:
    """Refuses: the built-in ledger converts its own grants."""
    raise _off()


async def conversion(_request: GrantsConversionGet) -> GrantsConversion:
    """Refuses."""
    raise _off()


async def finish(_request: GrantsConvertFinish) -> GrantsConversion:
    """Refuses."""
    raise _off()


def _off() -> HubError:
    return HubError(ErrorCode.NOT_FOUND, "This hub has no Payment Kit; HUB_PAYMENT_KIT_URL names one.")
