"""One scenario, measured through the gateway and directly: the figures that the tables show."""

from collections.abc import Iterable

import msgspec

from bench.measure import cpu_between, elsewhere_between
from bench.processes import Run
from bench.results import Result

LOAD = "load"
UPSTREAM = "upstream"
_MEGABYTE = 1_000_000


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario.

    Attributes:
        through: what the load generator found at the gateway.
        direct: what it found at the mock upstream, with nothing between.
        upstream_asked: requests that reached the mock upstream in the whole run through the gateway.
        upstream_cut: of these, streams whose other side went before the end.
        cpu_s: seconds of CPU in the window, by process; `upstream` and `load` among them.
        memory_mb: resident, by process; of `postgres` its share of shared pages (PSS).
        elsewhere: share of the machine that others used in the window; 1 is all cores.
        ours: names of our services, as far as they were measured.
        everything: `ours` with the supervisor and the servers they need.
    """

    scenario: str
    clients: int
    through: Result
    direct: Result
    upstream_asked: int
    upstream_cut: int
    cpu_s: dict[str, float]
    direct_cpu_s: dict[str, float]
    memory_mb: dict[str, float]
    elsewhere: float
    direct_elsewhere: float
    ours: tuple[str, ...]
    everything: tuple[str, ...]

    @property
    def rate_per_s(self) -> float:
        """Good answers a second in the window."""
        return self.through.window.ok / self.through.seconds

    @property
    def failures(self) -> int:
        """Everything that went wrong through the gateway, warm-up and end included."""
        return self.through.total.failures + self.through.connect_failures

    @property
    def direct_failures(self) -> int:
        """The same without the gateway: then the benchmark itself is at fault."""
        return self.direct.total.failures + self.direct.connect_failures

    @property
    def added_p50_ms(self) -> float | None:
        """What the gateway adds to the median; None without good answers on both sides."""
        return _difference(self.through.latency.p50, self.direct.latency.p50, self)

    @property
    def added_p99_ms(self) -> float | None:
        """The same of the 99th percentile."""
        return _difference(self.through.latency.p99, self.direct.latency.p99, self)

    @property
    def added_first_p50_ms(self) -> float | None:
        """The same of the median time to the first token."""
        return _difference(self.through.first.p50, self.direct.first.p50, self)

    @property
    def our_memory_mb(self) -> float | None:
        """Of our services and their supervisor; None if none was measured."""
        names = [name for name in self.memory_mb if name in {*self.ours, "supervisor"}]
        return sum(self.memory_mb[name] for name in names) if names else None

    def cpu_ms_per_call(self, names: Iterable[str]) -> float | None:
        """Milliseconds of CPU for each good answer; None if nothing was measured or answered."""
        known = [self.cpu_s[name] for name in names if name in self.cpu_s]
        if not known or not self.through.window.ok:
            return None
        return 1000 * sum(known) / self.through.window.ok


def memory_mb(run: Run) -> dict[str, float]:
    """Return megabytes by name: PostgreSQL's processes share their buffers, so those count once."""
    return {
        name: (used.pss if name == "postgres" else used.rss) / _MEGABYTE
        for name, used in run.memory.items()
        if name != UPSTREAM
    }


def cpu_s(run: Run) -> dict[str, float]:
    """Return seconds of CPU by name, the load generator's own included."""
    return cpu_between(run.before, run.after) | {LOAD: run.result.cpu_s}


def elsewhere(run: Run, cores: int) -> float:
    """Return the share of the machine that neither the named processes nor the load generator used."""
    unnamed = max(0.0, elsewhere_between(run.before, run.after) - run.result.cpu_s)
    return unnamed / (cores * (run.after.at - run.before.at))


def _difference(through: float, direct: float, measured: Measured) -> float | None:
    if not measured.through.window.ok or not measured.direct.window.ok:
        return None
    return through - direct
