"""The speed the design asks for (its section 9), against what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench import scenarios
from bench.measured import Measured
from bench.scenarios import Scenario


@dataclass(frozen=True)
class Target:
    """One figure of the design.

    Attributes:
        of: scenarios it is taken from; failures there forbid a yes.
        at_most: whether less is better.
        value: the figure from the scenarios' measurements, in `of`'s order.
    """

    name: str
    unit: str
    floor: float
    aim: float
    at_most: bool
    of: tuple[Scenario, ...]
    value: Callable[[list[Measured]], float | None]


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; None where it was not."""

    target: Target
    measured: float | None
    failures: int

    @property
    def floor_met(self) -> bool | None:
        """Whether the floor is met by calls that all succeeded."""
        return self._met(self.target.floor)

    @property
    def aim_met(self) -> bool | None:
        """Whether the aim is met by calls that all succeeded."""
        return self._met(self.target.aim)

    def _met(self, bound: float) -> bool | None:
        if self.measured is None:
            return None
        within = self.measured <= bound if self.target.at_most else self.measured >= bound
        return within and not self.failures


def _ours_ms(measured: list[Measured]) -> float | None:
    return measured[0].cpu_ms_per_call(measured[0].ours)


def _all_ms(measured: list[Measured]) -> float | None:
    return measured[0].cpu_ms_per_call(measured[0].everything)


def _rate(measured: list[Measured]) -> float | None:
    return measured[0].rate_per_s


def _p50(measured: list[Measured]) -> float | None:
    latency = measured[0].through.latency
    return latency.p50 if latency.count else None


def _added_first(measured: list[Measured]) -> float | None:
    return measured[0].added_first_p50_ms


def _stall(measured: list[Measured]) -> float | None:
    stall = measured[0].through.stall
    return stall.max if stall.count else None


def _memory(measured: list[Measured]) -> float | None:
    found = [m.our_memory_mb for m in measured]
    known = [megabytes for megabytes in found if megabytes is not None]
    return max(known) if known else None


_S = scenarios

TARGETS: Final = (
    Target("CPU of our services, JSON, 64 clients", "ms a call", 0.35, 0.20, True, (_S.JSON_64,), _ours_ms),
    Target("CPU of our services, JSON, 256 clients", "ms a call", 0.28, 0.15, True, (_S.JSON_256,), _ours_ms),
    Target("the same with NATS and PostgreSQL, 64 clients", "ms a call", 0.55, 0.32, True, (_S.JSON_64,), _all_ms),
    Target("settled JSON calls, 256 clients", "a second", 3000, 5000, False, (_S.JSON_256,), _rate),
    Target("CPU of our services, stream at once", "ms a call", 0.55, 0.33, True, (_S.BURST_32,), _ours_ms),
    Target("CPU of our services, stream chunk by chunk", "ms a call", 0.90, 0.55, True, (_S.CHUNKS_32,), _ours_ms),
    Target("streams at once", "a second", 1200, 2000, False, (_S.BURST_32,), _rate),
    Target("streams chunk by chunk", "a second", 800, 1300, False, (_S.CHUNKS_32,), _rate),
    Target("one client, p50 settled", "ms", 4, 2.5, True, (_S.JSON_1,), _p50),
    Target("one client, first token, added (p50)", "ms", 3, 1.8, True, (_S.STREAM_1,), _added_first),
    Target("200 streams at 50 chunks/s, worst stall", "ms", 50, 20, True, (_S.PACED_200,), _stall),
    Target("memory of our processes, under load", "MB", 400, 250, True, _S.SCENARIOS, _memory),
)


def verdicts(measured: Mapping[str, Measured]) -> list[Verdict]:
    """Judge every target by the scenarios that were run, keyed by their names."""
    found = []
    for target in TARGETS:
        used = [measured[scenario.name] for scenario in target.of if scenario.name in measured]
        value = target.value(used) if used else None
        found.append(Verdict(target, value, sum(one.failures for one in used)))
    return found
