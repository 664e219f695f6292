"""Settings of the janitor."""

from pydantic import Field

from runtime.settings import ServiceSettings


class Settings(ServiceSettings):
    """The janitor owns nothing: a bus is all it needs."""

    lease_s: float = Field(30.0, gt=0, description="Seconds that a call stays open without a sign of its router.")
    stale_period_s: float = Field(2.0, gt=0, le=60, description="Seconds between two looks for calls to close.")
    rates_check_period_s: float = Field(
        21_600.0, gt=0, description="Seconds between two checks of rates against costs."
    )
    rates_auto_update: bool = Field(
        default=False,
        description="Let the check change rates whose cost moved by less than 10 %, and propose the others.",
    )
    duty_lease_s: float = Field(
        4.0, ge=0.5, le=60, description="Seconds of silence after which another janitor takes over a duty."
    )
    grants_period_s: float = Field(
        5.0, gt=0, le=3600, description="Seconds between two looks for grants that begin or end; the longest delay."
    )
    claims_period_s: float = Field(3600.0, ge=1, description="Seconds between two clearings of expired keys.")
    partitions_period_s: float = Field(43_200.0, ge=1, description="Seconds between two looks for missing partitions.")
    reconcile_period_s: float = Field(3600.0, ge=1, description="Seconds between two comparisons of the books.")
    closing_period_s: float = Field(3600.0, ge=1, description="Seconds between two looks for days to close.")
    parked_period_s: float = Field(300.0, ge=1, description="Seconds between two looks for parked facts.")
