"""What the adapter counts, for Prometheus. Alert on parked rows, on `refused`, and on rows that grow old."""

from typing import Final

from prometheus_client import Counter, Gauge

POSTS: Final = Counter("hub_payment_kit_posts_total", "Meter events by what became of a try.", ["result"])
PARKED: Final = Counter("hub_payment_kit_parked_total", "Meter events parked: a person must look at each.")
REFRESHES: Final = Counter("hub_payment_kit_refreshes_total", "Balances read.", ["result"])
CALLBACKS: Final = Counter("hub_payment_kit_callbacks_total", "Webhooks received.", ["verdict"])
ROWS: Final = Gauge("hub_payment_kit_outbox_rows", "Rows that are not sent.", ["state"])
OLDEST_S: Final = Gauge("hub_payment_kit_oldest_pending_seconds", "Age of the oldest row that waits.")
CIRCUIT: Final = Gauge("hub_payment_kit_circuit_open", "1 while Payment Kit is left alone.")
