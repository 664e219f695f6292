"""One campaign: stage, load, kills, verdict, table."""

import argparse
import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from campaign import journals
from campaign.growth import Vitals
from campaign.kills import Kills, Watch
from campaign.load import Load
from campaign.stage import PAIRS, Stage, staged
from campaign.verdict import Verdict, judged


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how hard, and from which seed.

    Attributes:
        seconds: of faults; everything is killed once at least, however short.
        folder: where the journals of a failed campaign go.
        hands: kills that may be under way at once.
        counts: processes by service.
        rich: accounts with plenty of credit.
    """

    seed: int
    seconds: float
    folder: Path
    clients: int = 24
    pause_s: float = 0.4
    down_s: float = 2.0
    between_s: float = 3.0
    hands: int = 2
    counts: Mapping[str, int] = field(default_factory=lambda: PAIRS)
    rich: int = 9


@dataclass
class Outcome:
    """What a campaign came to."""

    verdict: Verdict
    kills: Kills

    @property
    def table(self) -> str:
        """Fault → count, figures, violations."""
        rows: list[tuple[str, object]] = [("kill -9", "count"), *sorted(self.kills.counts.items())]
        rows += [("all", len(self.kills.done)), ("while another part was down", self.kills.overlapping)]
        rows += [("", ""), *self.verdict.figures.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value}" for name, value in rows]
        found = self.verdict.violations
        return "\n".join([*lines, "", *found, f"{len(found)} violations" if found else "no violation"])


async def campaign(plan: Plan, root: Path, template: Path | None = None) -> Outcome:
    """Run one; journals are written when something was violated."""
    rng = random.Random(plan.seed)  # noqa: S311 - no secret
    async with staged(root, template, rng, counts=plan.counts, rich=plan.rich) as stage:
        load = Load(stage.payers, plan.seed, plan.clients, plan.pause_s)
        kills = Kills(stage, rng, plan.hands, plan.down_s, plan.between_s)
        watch, vitals = Watch(stage), Vitals(lambda: stage.scene.hub.pids)
        watching = asyncio.gather(watch.run(every_s=1.0), vitals.run(every_s=1.0))
        began = time.monotonic()
        try:
            await _faults(plan, load, kills)
            verdict = await judged(stage, kills.done, load.keyed)
            await watch.look()
        except AssertionError as error:  # something did not come back: that is a finding, too
            verdict = Verdict([str(error)])
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        verdict.violations += watch.overspent + kills.deaths + vitals.violations()
        verdict.figures |= {
            "looks at the books meanwhile": watch.looks,
            "seconds, to the verdict": round(time.monotonic() - began),
            **vitals.figures(),
            **{f"asked: {kind.replace('_', ' ')}": count for kind, count in sorted(load.kinds.items())},
        }
        outcome = Outcome(verdict, kills)
        if verdict.violations:
            await _write(plan, stage, outcome)
        return outcome


async def _faults(plan: Plan, load: Load, kills: Kills) -> None:
    """Kills under load for so long, everything at least once."""
    load.start()
    await kills.run(plan.seconds)
    load.raise_if_broken()
    await load.stop()


async def _write(plan: Plan, stage: Stage, outcome: Outcome) -> None:
    summary = {"seed": plan.seed, "violations": outcome.verdict.violations, "figures": outcome.verdict.figures}
    await journals.write(plan.folder, stage, summary, outcome.kills.done)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when an invariant was violated."""
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--folder", type=Path, help="for the journals of a failed campaign; default: a new one")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder or Path(tempfile.gettempdir()) / f"campaign-{chosen.seed}"
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # nats comes and goes
    print(f"seed {chosen.seed}, {chosen.minutes:g} minutes of faults", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(seed=chosen.seed, seconds=chosen.minutes * 60, folder=folder)
    with tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as root:
        outcome = asyncio.run(campaign(plan, Path(root)))
    print(outcome.table)
    if outcome.verdict.violations:
        print(f"journals: {folder}; once more: --seed {chosen.seed} --minutes {chosen.minutes:g}")
        return 1
    return 0
