import io

import msgspec
import pytest
from rich.console import Console

from bench import report, scenarios
from bench.figures import Spread
from bench.measured import Measured
from bench.options import parse
from bench.results import Result, Tally
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import TARGETS, Verdict, verdicts

NOTHING = Spread(count=0, mean=0, p50=0, p90=0, p99=0, max=0)


def result(*, ok: int = 6_000, p50: float = 1, failed: dict[str, int] | None = None, stall: float = 0) -> Result:
    some = Spread(count=ok, mean=p50, p50=p50, p90=p50, p99=3 * p50, max=9 * p50)
    faults = failed or {}
    return Result(
        seconds=6.0,
        window=Tally(sent=ok, ok=ok),
        total=Tally(sent=ok + sum(faults.values()), ok=ok, failed=faults),
        latency=some if ok else NOTHING,
        first=some if ok else NOTHING,
        stall=Spread(count=1, mean=stall, p50=stall, p90=stall, p99=stall, max=stall) if stall else NOTHING,
        stall_in_text=NOTHING,
        lag=NOTHING,
        cpu_s=0.5,
        connections=64,
        connect_failures=0,
    )


def measured(scenario: Scenario = scenarios.JSON_64, *, through: Result | None = None) -> Measured:
    found = through or result(p50=3)
    return Measured(
        scenario=scenario.name,
        clients=scenario.clients,
        through=found,
        direct=result(p50=1),
        upstream_asked=found.total.ok,
        upstream_cut=0,
        cpu_s={"gateway": 0.6, "metering": 0.6, "nats": 0.3, "postgres": 0.9, "supervisor": 0.06, "upstream": 1.0},
        direct_cpu_s={"upstream": 1.0, "load": 0.5},
        memory_mb={"gateway": 60, "metering": 70, "nats": 20, "postgres": 90, "supervisor": 30},
        elsewhere=0.1,
        direct_elsewhere=0.1,
        ours=("gateway", "metering"),
        everything=("gateway", "metering", "nats", "postgres", "supervisor"),
    )


def verdict_of(name: str, *found: Measured) -> Verdict:
    return next(v for v in verdicts({one.scenario: one for one in found}) if v.target.name.startswith(name))


def test_cpu_a_call_is_of_the_named_processes_and_the_good_answers() -> None:
    one = measured()
    assert one.cpu_ms_per_call(one.ours) == pytest.approx(0.2)
    assert one.cpu_ms_per_call(one.everything) == pytest.approx(0.41)
    assert one.rate_per_s == 1_000


def test_what_the_gateway_adds_is_the_difference_to_going_direct() -> None:
    one = measured()
    assert (one.added_p50_ms, one.added_p99_ms, one.added_first_p50_ms) == (2, 6, 2)


def test_without_good_answers_nothing_is_said_about_cost_or_added_time() -> None:
    one = measured(through=result(ok=0, failed={"HTTP 503": 10}))
    assert (one.added_p50_ms, one.cpu_ms_per_call(one.ours), one.failures) == (None, None, 10)


def test_memory_of_ours_is_services_and_supervisor_without_servers() -> None:
    assert measured().our_memory_mb == 160


def test_a_target_is_met_at_its_bound_and_missed_beyond() -> None:
    met = verdict_of("CPU of our services, JSON, 64", measured())
    assert (met.floor_met, met.aim_met) == (True, True)
    missed = verdict_of("CPU of our services, JSON, 64", measured(through=result(ok=4_000, p50=3)))
    assert (missed.floor_met, missed.aim_met) == (True, False)


def test_a_rate_is_met_from_below() -> None:
    found = verdict_of("settled JSON calls", measured(scenarios.JSON_256, through=result(ok=24_000)))
    assert (found.measured, found.floor_met, found.aim_met) == (4_000, True, False)


def test_no_target_is_met_by_a_run_in_which_calls_failed() -> None:
    found = verdict_of("CPU of our services, JSON, 64", measured(through=result(p50=3, failed={"HTTP 402": 1})))
    assert (found.floor_met, found.aim_met, found.failures) == (False, False, 1)


def test_a_scenario_that_was_not_run_is_neither_met_nor_missed() -> None:
    found = verdict_of("streams at once", measured())
    assert (found.measured, found.floor_met, found.aim_met) == (None, None, None)


def test_paced_streams_without_a_stall_count_are_not_measured() -> None:
    assert verdict_of("200 streams", measured(scenarios.PACED_200)).measured is None
    assert verdict_of("200 streams", measured(scenarios.PACED_200, through=result(stall=21))).aim_met is False


def test_every_target_has_a_floor_no_harder_than_its_aim() -> None:
    assert all((t.floor >= t.aim) if t.at_most else (t.floor <= t.aim) for t in TARGETS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_load_generator_understands_every_scenario(scenario: Scenario, tmp_path) -> None:  # type: ignore[no-untyped-def]
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    command = ["--url", "http://127.0.0.1:1/v1", "--keys", str(keys), *scenario.arguments("bench/", 6, 2)]
    options = parse(command)
    assert options.model == f"bench/{scenario.model}"
    assert (options.clients, options.rate_per_s) == (scenario.clients, scenario.rate_per_s)
    assert options.seconds >= 6
    assert options.keys == ["one", "two"]


def test_failures_and_missed_targets_stand_in_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(report, "Console", lambda **_: Console(file=out, width=170))
    found = [measured(through=result(p50=3, failed={"HTTP 402": 12, "cut": 3}))]
    report.print_report(found, verdicts({one.scenario: one for one in found}))
    text = out.getvalue()
    assert "12 times HTTP 402" in text
    assert "3 times cut" in text
    assert "no: 15 failed" in text
    assert "not measured" in text


def test_an_upstream_that_was_asked_more_often_than_answered_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(report, "Console", lambda **_: Console(file=out, width=170))
    report.print_report([msgspec.structs.replace(measured(), upstream_asked=6_001)], None)
    assert "6,001 !" in out.getvalue()
    assert "Against the design" not in out.getvalue()
