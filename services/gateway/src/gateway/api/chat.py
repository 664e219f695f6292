"""What every chat request passes on its way."""

from dataclasses import dataclass

from gateway.admission.prices import Prices
from gateway.admission.reserve import Reserver
from gateway.auth.principals import Principals
from gateway.dispatch import Dispatcher
from gateway.settings import Settings
from runtime.telemetry import Tracing


@dataclass(frozen=True, slots=True)
class Chat:
    """The parts of a gateway that serve chat requests."""

    settings: Settings
    process: str
    principals: Principals
    prices: Prices
    reserver: Reserver
    dispatcher: Dispatcher
    tracing: Tracing
