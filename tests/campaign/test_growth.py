"""The judge of I13: what counts as growth, and what does not."""

import os
import sys
from collections.abc import Callable

import pytest

from campaign.growth import BOUND, MIB, WARM_S, Life, Sample, Vitals

RSS, FDS = 100 * MIB, 40


def life(
    seconds: int,
    rss: Callable[[int], float] = lambda _: RSS,
    fds: Callable[[int], float] = lambda _: FDS,
    name: str = "m",
) -> Life:
    return Life(name, [Sample(1000.0 + second, int(rss(second)), int(fds(second))) for second in range(seconds)])


def test_a_leak_by_the_call_is_found_and_told_with_its_figures() -> None:
    leaking = life(120, rss=lambda second: RSS + second * MIB // 4)
    assert list(leaking.violations()) == ["I13, m: from 106 to 126 MiB of memory in a life of 119 s"]


def test_descriptors_that_are_never_closed_are_found() -> None:
    (words,) = life(60, fds=lambda second: FDS + second).violations()
    assert words.startswith("I13, m: from 56 to 94 file descriptors")


@pytest.mark.parametrize(
    "bounded",
    [
        life(120),
        life(120, rss=lambda second: RSS * min(second / WARM_S, 1)),
        life(120, rss=lambda second: RSS + (50 * MIB if second in {60, 110, 111} else 0)),
        life(120, fds=lambda second: FDS + (200 if 50 < second < 60 else 0)),
        life(120, rss=lambda second: RSS + min(second, 40) * (BOUND.rss - MIB) / 40),
        life(120, rss=lambda second: 5 * RSS + second * MIB // 4),
        life(20, rss=lambda second: RSS + second * 10 * MIB),
        life(120, rss=lambda second: RSS - second * MIB // 4),
    ],
    ids=["even", "warming up", "bursts", "a crowd", "within the bound", "within a tenth", "too short", "shrinking"],
)
def test_this_is_no_growth(bounded: Life) -> None:
    assert list(bounded.violations()) == []


def test_a_server_with_a_stream_in_memory_may_fill_it() -> None:
    filling = life(120, rss=lambda second: RSS + second * 2 * MIB, name="nats")
    assert list(filling.violations()) == []
    assert list(life(120, rss=lambda second: RSS + second * 4 * MIB, name="nats").violations())


def test_each_life_is_looked_at_for_itself_and_the_dead_are_passed_over() -> None:
    pids = {"metering": os.getpid(), "gone": 2**22 + 1}
    vitals = Vitals(lambda: pids)
    vitals.look()
    pids["metering"] = os.getppid()
    vitals.look()
    vitals.look()
    assert [len(one.samples) for one in vitals.lives.values()] == [1, 2]
    (words,) = vitals.figures().values()
    assert words.endswith("2 lives, none long enough to judge")
    mine = vitals.lives["metering", os.getpid()].samples[0]
    assert mine.rss > 10 * MIB
    with open(sys.executable, "rb"):  # noqa: PTH123 - any file
        vitals.running = lambda: {"metering": os.getpid()}
        vitals.look()
        assert vitals.lives["metering", os.getpid()].samples[-1].fds == mine.fds + 1
