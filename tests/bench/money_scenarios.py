"""What `make bench-money` runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WARMUP_S: Final = 2.0
_DEFAULT_RATE: Final = 2000.0
"""Half of the rate asked for, where `settle` was not run before."""


@dataclass(frozen=True, kw_only=True)
class MoneyScenario:
    """One run.

    Attributes:
        clients: of a closed loop: calls under way at a time.
        half_load: an open loop at half of what `settle` reached.
        hot_share: of the calls, on one account.
        sets_rate: the open loops go by what it reaches.
    """

    name: str
    accounts: int
    clients: int = 0
    half_load: bool = False
    hot_share: float = 0.0
    backlog: bool = False
    sets_rate: bool = False


SETTLE: Final = MoneyScenario(name="settle", accounts=1000, clients=512, sets_rate=True)
HALF: Final = MoneyScenario(name="half", accounts=1000, half_load=True)
HOT: Final = MoneyScenario(name="half-hot", accounts=1000, half_load=True, hot_share=0.5)
ONE: Final = MoneyScenario(name="one-account", accounts=1, clients=512)
BACKLOG: Final = MoneyScenario(name="backlog", accounts=1000, backlog=True)
SCENARIOS: Final = (SETTLE, HALF, HOT, ONE, BACKLOG)
ROUNDS: Final = 3
"""Of the open loops, by turns: what else the machine does meanwhile hits all of them."""


def in_order(wanted: Sequence[MoneyScenario]) -> list[MoneyScenario]:
    """All runs: first what gives the open loops their rate, then those by turns, then the others."""
    open_loops = [one for one in wanted if one.half_load]
    first = [one for one in wanted if one.sets_rate]
    return [*first, *ROUNDS * open_loops, *(one for one in wanted if one not in {*first, *open_loops})]


def arguments(scenario: MoneyScenario, prefix: str, rate: float, seconds: float, backlog: int) -> list[str]:
    """The load generator's command line.

    Args:
        prefix: of its accounts, not used by any run before.
        rate: calls a second of an open loop; 0 = not known.
        seconds: measured window.
        backlog: completions that queue.
    """
    found = ["--accounts", f"{prefix}:{scenario.accounts}"]
    if scenario.backlog:
        return [*found, "--calls", str(backlog)]
    found += ["--seconds", str(seconds), "--warmup", str(WARMUP_S)]
    if scenario.half_load:
        return [*found, "--rate", f"{rate or _DEFAULT_RATE:.0f}", "--hot-share", str(scenario.hot_share)]
    return [*found, "--clients", str(scenario.clients)]
