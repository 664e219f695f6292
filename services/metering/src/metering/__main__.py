"""Entry point: `python -m metering [--check]`."""

from metering.app import metering
from metering.settings import Settings
from runtime import process


def main() -> None:
    """Run metering until it is told to stop."""
    process.main("metering", Settings, metering)


if __name__ == "__main__":
    main()
