"""What one run of the load generator is told."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import Target


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run.

    Attributes:
        clients: connections; in an open loop those it begins with.
        rate_per_s: arrivals of an open loop; 0 is a closed loop.
        requests: end after so many instead of after `seconds`; no warm-up then. 0 is no limit.
        stagger_s: the clients begin spread over so long.
        timeout_s: how long an answer may take, and how long the end waits for the last ones.
    """

    target: Target
    keys: Sequence[str]
    model: str
    stream: bool
    clients: int
    seconds: float
    warmup_s: float = 0.0
    rate_per_s: float = 0.0
    requests: int = 0
    stagger_s: float = 0.0
    timeout_s: float = 30.0
    announce: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.load", description="Many clients against one OpenAI-compatible URL.")
    parser.add_argument("--url", required=True, help="base URL, such as http://127.0.0.1:8080/v1")
    parser.add_argument("--keys", type=Path, required=True, help="file of keys, one a line")
    parser.add_argument("--model", default="bench-json")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds before the window")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests a second")
    parser.add_argument("--requests", type=int, default=0, help="so many, no window")
    parser.add_argument("--stagger", type=float, default=0.0, help="seconds to start clients in")
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--announce", action="store_true")
    found = parser.parse_args(arguments)
    return Options(
        target=Target.at(found.url),
        keys=found.keys.read_text().split(),
        model=found.model,
        stream=found.stream,
        clients=found.clients,
        seconds=found.seconds,
        warmup_s=0.0 if found.requests else found.warmup,
        rate_per_s=found.rate,
        requests=found.requests,
        stagger_s=found.stagger,
        timeout_s=found.timeout,
        announce=found.announce,
    )
