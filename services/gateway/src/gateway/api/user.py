"""`GET /api/user/info`: the caller and the balance, field names as the original's clients read them."""

from pydantic import BaseModel, Field

from contracts.money import to_text
from gateway.api.services import Caller, Used


class User(BaseModel):
    """Who calls."""

    did: str
    fullName: str  # noqa: N815 - the original's name
    email: str = ""
    avatar: str = ""


class CreditBalance(BaseModel):
    """Credits as decimal strings with ten places."""

    balance: str = Field(description="What can be spent now.")
    total: str = Field(description="All that was ever granted, less what ended unused.")
    pendingCredit: str = Field(description="Held for calls that are running, or not yet reported.")  # noqa: N815 - the original's name
    grantCount: int = Field(description="Grants of which something is left.")  # noqa: N815 - the original's name


class Currency(BaseModel):
    """The unit of all credits."""

    symbol: str = "credits"
    decimal: int = 10


class UserInfo(BaseModel):
    """`creditBalance` is null while billing is off; `paymentLink` where none is set."""

    user: User
    role: str
    creditBalance: CreditBalance | None  # noqa: N815 - the original's name
    enableCredit: bool  # noqa: N815 - the original's name
    currency: Currency | None
    paymentLink: str | None = None  # noqa: N815 - the original's name
    profileLink: str | None = None  # noqa: N815 - the original's name
    creditPrefix: str = ""  # noqa: N815 - the original's name


async def info(used: Used, principal: Caller) -> UserInfo:
    """The caller's profile and balance."""
    balance = None
    if used.billing:
        books = await used.peers.balance(principal.account)
        balance = CreditBalance(
            balance=to_text(books.available),
            total=to_text(books.granted),
            pendingCredit=to_text(books.held + books.pending),
            grantCount=books.grants,
        )
    return UserInfo(
        user=User(did=principal.user, fullName=await used.full_name(principal.user)),
        role=principal.role,
        creditBalance=balance,
        enableCredit=used.billing,
        currency=Currency() if used.billing else None,
        paymentLink=used.payment_link() if used.billing else None,
    )
