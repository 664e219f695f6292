"""`hub payments`: what is reported to Payment Kit, and what it would not take."""

from contracts.money import to_text
from contracts.rpc import metering, payments
from hub_local.commands import show
from hub_local.commands.session import ask, run


def status(*, parked: int = 20) -> None:
    """Show how reporting to Payment Kit goes, and what is parked.

    Args:
        parked: most parked reports that are shown.
    """
    request = payments.PaymentStatusGet(parked_max=parked)
    _print(run(ask(metering.SERVICE, payments.PAYMENT_STATUS, request, payments.PaymentStatus)))


def pause() -> None:
    """Send no more meter events; they are kept."""
    _switch(paused=True)


def resume() -> None:
    """Go on sending meter events."""
    _switch(paused=False)


def retry(*identifiers: str) -> None:
    """Try parked meter events again, as they are; without names, all.

    Args:
        identifiers: as `hub payments status` shows them.
    """
    request = payments.PaymentRetry(identifiers=identifiers or None)
    retried = run(ask(metering.SERVICE, payments.PAYMENT_RETRY, request, payments.PaymentRetried)).retried
    print(f"{retried} meter events are tried again")


def _switch(*, paused: bool) -> None:
    request = payments.PaymentPause(paused=paused)
    _print(run(ask(metering.SERVICE, payments.PAYMENT_PAUSE, request, payments.PaymentStatus)))


def _print(told: payments.PaymentStatus) -> None:
    if not told.is_on:
        print("This hub has no Payment Kit; HUB_PAYMENT_KIT_URL names one.")
        return
    state = "paused" if told.is_paused else "sending" if told.circuit_closed else "Payment Kit does not answer"
    print(f"{state}: {told.pending} pending, {told.parked} parked, {to_text(told.unreported)} credits not reported yet")
    if told.parked_reports:
        show.table(
            ("identifier", "account", "credits", "tries", "why"),
            [(r.identifier, r.account, to_text(r.value), str(r.tries), r.reason) for r in told.parked_reports],
        )
