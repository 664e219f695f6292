"""The books as they should be: plain Python beside the real SQL, one account or call at a time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import TypeAlias

INPUT = Decimal("0.001")
OUTPUT = Decimal("0.002")
NOTHING = Decimal(0)


@dataclass
class Account:
    granted: Decimal = NOTHING
    held: Decimal = NOTHING
    spent: Decimal = NOTHING
    seq: int = 0
    sent: int = 0
    acknowledged: set[int] = field(default_factory=set, compare=False)
    """Sequences whose events the bus has."""

    @property
    def free(self) -> Decimal:
        return self.granted - self.held - self.spent


@dataclass
class Call:
    account: str
    hold: Decimal
    state: str = "processing"
    epoch: int = 1
    credits: Decimal | None = None
    overrun: Decimal = NOTHING
    written_off: Decimal = NOTHING
    sequence: int = 0
    is_stale: bool = False
    """Its lease has ended."""


@dataclass(frozen=True)
class Reserve:
    call_id: str
    account: str
    hold: Decimal


@dataclass(frozen=True)
class Fact:
    """What a router, gateway or janitor says of a call."""

    call_id: str
    account: str
    epoch: int
    success: bool
    tokens: tuple[int, int] | None
    """Input and output; None when nothing was used."""

    @property
    def cost(self) -> Decimal:
        if self.tokens is None:
            return NOTHING
        exact = INPUT * self.tokens[0] + OUTPUT * self.tokens[1]
        return exact.quantize(Decimal("1E-10"), ROUND_HALF_UP)


Said: TypeAlias = tuple[str, ...]
"""What a turn said of one fact or reserve."""


@dataclass
class Books:
    accounts: dict[str, Account] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    late: set[tuple[str, int]] = field(default_factory=set)

    def turned(self, facts: Sequence[Fact], asked: Sequence[Reserve]) -> tuple["Books", list[Said]]:
        """The books after a turn, and what it says: settle first, reserve second."""
        after = copy.deepcopy(self)
        said = [after._settle(fact) for fact in facts]
        # A turn compares with the state before it; every call occurs once, so one after the other is the same.
        return after, said + [after._reserve(reserve) for reserve in asked]

    def granted(self, account: str, amount: Decimal) -> None:
        self.accounts.setdefault(account, Account()).granted += amount

    def extended(self, call_id: str, epoch: int, account: str, amount: Decimal) -> str:
        """Why a hold was not raised, or `granted`."""
        call = self.calls.get(call_id)
        if call is None or (call.state, call.epoch, call.account) != ("processing", epoch, account):
            return "ended"
        payer = self.accounts[account]
        if payer.free < amount:
            return "not_enough"
        payer.held += amount
        call.hold += amount
        return "granted"

    def forwarded(self, account: str, first: int, last: int) -> None:
        """Over acknowledged events only, never over a gap, never back; what is behind a gap is remembered."""
        payer = self.accounts[account]
        payer.acknowledged |= set(range(first, last + 1))
        while payer.sent + 1 in payer.acknowledged:
            payer.sent += 1

    def open_calls(self) -> list[str]:
        return [call_id for call_id, call in self.calls.items() if call.state == "processing"]

    def _settle(self, fact: Fact) -> Said:
        call = self.calls.get(fact.call_id)
        if call is None:
            return ("standing", "", "")
        if (call.state, call.epoch, call.account) == ("processing", fact.epoch, fact.account):
            self._close(call, fact)
            return ("settled", f"{call.credits:.10f}", f"{call.overrun:.10f}", str(call.sequence))
        mine = call.account == fact.account
        if mine and fact.success and call.state != "success" and (fact.call_id, fact.epoch) not in self.late:
            self.late.add((fact.call_id, fact.epoch))
            call.written_off += fact.cost
        credits_ = NOTHING if call.credits is None else call.credits
        return ("standing", call.state, f"{credits_:.10f}")

    def _close(self, call: Call, fact: Fact) -> None:
        account = self.accounts[call.account]
        call.state = "success" if fact.success else "failed"
        call.credits = min(fact.cost, call.hold) if fact.success else NOTHING
        call.overrun = max(fact.cost - call.hold, NOTHING) if fact.success else NOTHING
        call.written_off = NOTHING if fact.success else fact.cost
        account.held -= call.hold
        account.spent += call.credits
        account.seq += 1
        call.sequence = account.seq

    def _reserve(self, asked: Reserve) -> Said:
        if asked.hold == 0:
            self.accounts.setdefault(asked.account, Account())
        if asked.call_id in self.calls:
            return ("exists",)
        account = self.accounts.get(asked.account)
        if account is None or account.free < asked.hold:
            return ("not_enough",)
        account.held += asked.hold
        self.calls[asked.call_id] = Call(asked.account, asked.hold)
        return ("reserved",)
