"""`python -m payment_kit --port 8090`: a Payment Kit for tests and for trying the hub with one.

The application's secret key comes from `HUB_PAYMENT_KIT_APP_KEY`. With `--journal` it keeps its books in that file,
over any crash. Tests set faults that are there from the first request on by `PAYMENT_KIT_FAULTS`.
"""

import argparse
import json
import os
from pathlib import Path

import uvicorn

from payment_kit.books import Books
from payment_kit.server import Server
from runtime.component_call import AppKey


def main() -> None:
    """Serve until told to stop."""
    options = argparse.ArgumentParser(prog="payment_kit", description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--journal", type=Path, help="file of all that was applied")
    dedup_s = os.environ.get("PAYMENT_KIT_DEDUP_S") or None
    options.add_argument("--dedup-s", type=float, default=dedup_s, help="forget identifiers after so many seconds")
    options.add_argument("--webhook", help="URL that is told of new grants")
    chosen = options.parse_args()
    books = Books.opened(chosen.journal, chosen.dedup_s)
    if chosen.webhook and chosen.webhook not in {webhook["url"] for webhook in books.webhooks}:
        books.add_webhook({"url": chosen.webhook, "enabled_events": ["customer.credit_grant.granted"]})
    server = Server(books, AppKey.read(os.environ["HUB_PAYMENT_KIT_APP_KEY"]))
    server.faults.replace(json.loads(os.environ.get("PAYMENT_KIT_FAULTS") or "[]"))
    uvicorn.run(
        server,  # type: ignore[arg-type]
        host=chosen.host,
        port=chosen.port,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
