"""What `make bench-money` runs."""

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


def arguments(scenario: MoneyScenario, rate: float, seconds: float, backlog: int) -> list[str]:
    """The load generator's command line.

    Args:
        rate: calls a second of an open loop; 0 = not known.
        seconds: measured window.
        backlog: completions that queue.
    """
    found = ["--accounts", f"{scenario.name}:{scenario.accounts}"]
    if scenario.backlog:
        return [*found, "--calls", str(backlog)]
    found += ["--seconds", str(seconds), "--warmup", str(WARMUP_S)]
    if scenario.half_load:
        return [*found, "--rate", f"{rate or _DEFAULT_RATE:.0f}", "--hot-share", str(scenario.hot_share)]
    return [*found, "--clients", str(scenario.clients)]
