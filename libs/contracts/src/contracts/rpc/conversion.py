"""Questions about converting the unit of credits, asked by operators: pydantic.

Every balance and rate is multiplied by one price, by added rows only. While a conversion is open calls are refused with
503, since a call that is priced in one unit must not be paid in the other.
"""

from typing import Final
from uuid import NAMESPACE_URL, uuid5

from pydantic import Field

from contracts.money import Credits, parse
from contracts.rpc.envelope import Message
from contracts.rpc.rate_changes import CreditPrice

CONVERSION_START: Final = "conversion_start"
CONVERSION_ACCOUNTS: Final = "conversion_accounts"
CONVERSION_FINISH: Final = "conversion_finish"
RATES_CONVERT: Final = "rates_convert"
PAGE_MAX: Final = 500


class ConversionStart(Message):
    """Refuse calls from now on, so that balances can be converted; again, it tells how things stand."""

    price: CreditPrice
    """New credits for one old credit."""
    dry_run: bool = False
    """Only tell how things stand."""


class ConversionFinish(Message):
    """Admit calls again; refused while an account is not converted."""

    price: CreditPrice


class Conversion(Message):
    """How a conversion stands. Sums are exact: after = before * price + rounding."""

    conversion_id: str
    """Follows from the price: the same price is the same conversion, and is done once."""
    price: str
    started_at: str | None
    finished_at: str | None
    is_known: bool
    """Every metering process refuses calls by now."""
    running: int
    """Accounts whose calls have not ended; they can be converted when those have."""
    late: int
    """Calls that were admitted after all metering processes should have known: look at them one by one."""
    waiting: int
    """Accounts that are not converted."""
    converted: int
    before: str
    after: str
    rounding: str
    """Exact, all places; below 0 = accounts have lost it."""


class ConversionAccounts(Message):
    """Convert a page of accounts, one transaction each; those that were converted are passed over."""

    price: CreditPrice
    after: str = ""
    """An account: those behind it."""
    limit: int = Field(200, gt=0, le=PAGE_MAX)
    dry_run: bool = False


class ConvertedAccount(Message):
    """What a conversion makes of an account's unspent credit; grants that have not begun are part of it."""

    account: str
    grants: int
    before: Credits
    after: Credits
    rounding: str
    """after - before * price, exact."""
    problem: str = ""
    """Why it was not converted: `busy` (a call runs), `too_much`. Empty = it was, or would be."""


class ConversionPage(Message):
    """`next_after` is None on the last page."""

    accounts: tuple[ConvertedAccount, ...]
    next_after: str | None


class RatesConvert(Message):
    """Multiply every rate that stands in a row by the price, all or none, once per price. Rates are not rounded."""

    price: CreditPrice
    dry_run: bool = False


def conversion_id(price: str) -> str:
    """The id of the conversion at a price, however that is written."""
    return str(uuid5(NAMESPACE_URL, f"aigne-hub:conversion:{parse(price).normalize():f}"))
