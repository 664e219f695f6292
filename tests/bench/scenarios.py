"""What is measured: the table of scenarios."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of load.

    Attributes:
        rate_per_s: arrivals of an open loop; 0 is a closed loop.
        pace_per_s: chunks a second of each stream; 0 is as fast as it goes.
        seconds_min: the window is never shorter, whatever was asked for.
    """

    name: str
    model: str
    clients: int
    stream: bool = False
    rate_per_s: int = 0
    pace_per_s: int = 0
    seconds_min: float = 0.0

    def arguments(self, model_prefix: str, seconds: float, warmup_s: float) -> list[str]:
        """Return the load generator's command line for it."""
        found = [
            *("--model", model_prefix + self.model, "--clients", str(self.clients)),
            *("--seconds", str(max(seconds, self.seconds_min)), "--warmup", str(warmup_s)),
        ]
        if self.stream:
            found.append("--stream")
        if self.rate_per_s:
            found += ["--rate", str(self.rate_per_s)]
        if self.pace_per_s:
            # Starts spread over a second, so that the streams' chunks don't come in step.
            found += ["--stagger", "1"]
        return found


JSON_1: Final = Scenario(name="json-1", model="bench-json", clients=1)
JSON_64: Final = Scenario(name="json-64", model="bench-json", clients=64)
JSON_256: Final = Scenario(name="json-256", model="bench-json", clients=256)
OPEN_1500: Final = Scenario(name="open-1500", model="bench-json", clients=64, rate_per_s=1500)
STREAM_1: Final = Scenario(name="stream-1", model="bench-chunks", clients=1, stream=True)
BURST_32: Final = Scenario(name="burst-32", model="bench-burst", clients=32, stream=True)
CHUNKS_32: Final = Scenario(name="chunks-32", model="bench-chunks", clients=32, stream=True)
PACED_200: Final = Scenario(
    name="paced-200", model="bench-paced-50", clients=200, stream=True, pace_per_s=50, seconds_min=10
)

SCENARIOS: Final = (JSON_1, JSON_64, JSON_256, OPEN_1500, STREAM_1, BURST_32, CHUNKS_32, PACED_200)
