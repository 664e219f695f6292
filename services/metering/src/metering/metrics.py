"""What metering counts, for Prometheus. No account, model or user in a label."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

TURN_SECONDS: Final = Histogram(
    "hub_metering_turn_seconds",
    "Time of one transaction that settles and reserves.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)
TURN_CALLS: Final = Histogram(
    "hub_metering_turn_calls", "Facts and reserves of one turn.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
SETTLED: Final = Counter("hub_metering_settled_total", "Calls settled.", ["state"])
REPEATED: Final = Counter("hub_metering_repeated_total", "Facts that changed nothing.")
RESERVES: Final = Counter("hub_metering_reserves_total", "Reserves answered.", ["status"])
PARKED: Final = Counter("hub_metering_parked_total", "Facts parked.", ["reason"])
TURNS_FAILED: Final = Counter("hub_metering_turns_failed_total", "Transactions that failed.", ["error"])
BACKLOG: Final = Gauge("hub_metering_backlog", "Waiting for the next turn.", ["what"])
OVERRUN: Final = Counter("hub_metering_overrun_calls_total", "Calls whose cost was above their hold.")
USAGE_STORED: Final = Counter("hub_metering_usage_events_total", "Usage events stored on the bus.")
USAGE_CAUGHT_UP: Final = Counter("hub_metering_usage_events_repeated_total", "Usage events published again.")
GRANTS: Final = Counter("hub_metering_grants_total", "Grants begun and ended because their time had come.", ["what"])
NOTICES: Final = Counter("hub_metering_credit_notices_total", "Notices about balances stored on the bus.", ["level"])
DIFFERENCES: Final = Gauge("hub_reconcile_differences", "Differences that the last comparison of the books found.")
NOT_COMPARED: Final = Gauge("hub_reconcile_not_compared", "Sides that the last comparison could not read.")
