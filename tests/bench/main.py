"""`make bench`: our system on scratch data, or any OpenAI-compatible URL, against a fast mock upstream.

Without `--url` the system is started with everything on. With `--url` the peer must already run and
have the mock upstream (`--upstream-port`) as its provider: start it first with `python -m bench.upstream`
if the peer asks for it at its own start, and give `--upstream http://127.0.0.1:PORT --upstream-pid PID`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench.measure import ProcessGoneError
from bench.measured import UPSTREAM, Measured, cpu_s, elsewhere, memory_mb
from bench.processes import BenchError, Run, Upstream, run_load, running_upstream
from bench.report import print_report
from bench.scenarios import SCENARIOS, Scenario
from bench.system import SERVERS, SUPERVISOR, System, running_hub
from bench.targets import verdicts

_QUICK_S: Final = 2.0
_QUICK_WARMUP_S: Final = 1.0
_WARMUP_S: Final = 2.0
_UPSTREAM_PORT: Final = 18_091


def main() -> int:
    """Run from the command line; 1 when the benchmark could not be run, 2 when a call failed."""
    options = _parse(sys.argv[1:])
    try:
        measured = _measure_all(options)
    except (BenchError, ProcessGoneError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    judged = None if options.url else verdicts({one.scenario: one for one in measured})
    print_report(measured, judged)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2))
    return 2 if any(one.failures or one.direct_failures for one in measured) else 0


def _measure_all(options: argparse.Namespace) -> list[Measured]:
    wanted = [s for s in SCENARIOS if not options.scenario or s.name in options.scenario]
    seconds = _QUICK_S if options.quick else options.seconds
    warmup_s = _QUICK_WARMUP_S if options.quick else _WARMUP_S
    with _upstream(options) as upstream, _system(options, upstream) as system:
        measured = []
        for scenario in wanted:
            sys.stderr.write(f"bench: {scenario.name} …\n")
            measured.append(_measure(scenario, system, upstream, seconds, warmup_s))
        return measured


def _measure(scenario: Scenario, system: System, upstream: Upstream, seconds: float, warmup_s: float) -> Measured:
    """Measure one scenario direct and, right after it, through the gateway."""
    own = {UPSTREAM: (upstream.pid,)}
    direct = run_load(f"{upstream.url}/v1", ["direct"], scenario.arguments("", seconds, warmup_s), own)
    asked_before = upstream.counts()
    arguments = scenario.arguments(system.model_prefix, seconds, warmup_s)
    through: Run = run_load(system.url, system.keys, arguments, {**system.processes, **own})
    asked = upstream.counts()
    names = tuple(system.processes)
    cores = os.cpu_count() or 1
    return Measured(
        scenario=scenario.name,
        clients=scenario.clients,
        through=through.result,
        direct=direct.result,
        upstream_asked=asked.requests - asked_before.requests,
        upstream_cut=asked.streams_cut - asked_before.streams_cut,
        cpu_s=cpu_s(through),
        direct_cpu_s=cpu_s(direct),
        memory_mb=memory_mb(through),
        elsewhere=elsewhere(through, cores),
        direct_elsewhere=elsewhere(direct, cores),
        ours=tuple(name for name in names if name not in {*SERVERS, SUPERVISOR}),
        everything=names,
    )


@contextmanager
def _upstream(options: argparse.Namespace) -> Iterator[Upstream]:
    if options.upstream:
        yield Upstream(pid=options.upstream_pid, url=options.upstream.rstrip("/"))
    else:
        with running_upstream(options.upstream_port if options.url else 0) as upstream:
            yield upstream


@contextmanager
def _system(options: argparse.Namespace, upstream: Upstream) -> Iterator[System]:
    if options.url:
        keys = options.keys.read_text().split() if options.keys else [options.key]
        yield System(
            url=options.url, keys=tuple(keys), model_prefix=options.model_prefix, processes=_named(options.pids)
        )
        return
    with ExitStack() as stack:
        if options.keep:
            folder = options.keep
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-bench-")))
        yield stack.enter_context(running_hub(folder, upstream, options.accounts))


def _named(pids: str) -> dict[str, tuple[int, ...]]:
    """Read `name=pid,name=pid`; a name may come several times."""
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, pids.split(",")):
        name, _, pid = part.partition("=")
        if not pid.isdigit():
            raise BenchError(f"--pids takes name=pid,…, not {part!r}")
        found[name] = (*found.get(name, ()), int(pid))
    return found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="measure this OpenAI-compatible base URL instead of our system")
    parser.add_argument("--key", default="bench", help="access key for --url")
    parser.add_argument("--keys", type=Path, help="file of access keys for --url, one a line")
    parser.add_argument("--model-prefix", default="", help="put before the mock upstream's model names")
    parser.add_argument("--pids", default="", help="name=pid,…: processes behind --url to measure, with children")
    parser.add_argument("--upstream-port", type=int, default=_UPSTREAM_PORT, help="of the mock upstream for --url")
    parser.add_argument("--upstream", help="URL of a mock upstream that already runs")
    parser.add_argument("--upstream-pid", type=int, help="its process id")
    parser.add_argument("--accounts", type=int, default=1, help="accounts that call in turn")
    parser.add_argument("--keep", type=Path, help="new folder for our system's data and log, kept afterwards")
    parser.add_argument("--seconds", type=float, default=6.0, help="measured window of each scenario")
    parser.add_argument("--quick", action="store_true", help="windows of 2 s after 1 s of warm-up")
    parser.add_argument("--scenario", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--json", type=Path, help="write everything there too")
    options = parser.parse_args(arguments)
    if bool(options.upstream) != bool(options.upstream_pid):
        parser.error("--upstream and --upstream-pid go together")
    return options
