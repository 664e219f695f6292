"""Settings of metering."""

from decimal import Decimal

from pydantic import Field

from metering.payment_kit.settings import PaymentKitSettings


class Settings(PaymentKitSettings):
    """Read once in `__main__`, passed on as values."""

    lease_s: float = Field(30.0, gt=0, le=3600, description="Seconds that a call lives without its lease renewed.")
    idempotency_s: float = Field(86_400.0, gt=0, description="Seconds that an Idempotency-Key belongs to its call.")
    turn_max: int = Field(256, gt=0, le=2048, description="Most reserves, and most outcomes, of one transaction.")
    suspect_deliveries: int = Field(
        5, ge=2, description="An outcome delivered so often without an answer is settled by a process of its own."
    )
    reserve_wait_s: float = Field(2.0, gt=0, description="Longest wait of a reserve before it is refused with 503.")
    credit_low: Decimal = Field(
        Decimal(1), ge=0, lt=10**18, description="Balance at and below which a notice about low credit is sent."
    )
    grant_notices_kept_s: float = Field(
        2_592_000.0, ge=86_400, description="Seconds that notices of grants are kept after they were sent."
    )
    reserves_max: int = Field(16_384, gt=0, description="Most waiting reserves of one process; more are refused.")
