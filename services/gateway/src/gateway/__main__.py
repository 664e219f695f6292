"""Entry point: `python -m gateway [--check]`."""

from gateway.app import SERVICE, gateway
from gateway.settings import Settings
from runtime import process


def main() -> None:
    """Run the service until it is told to stop."""
    process.main(SERVICE, Settings, gateway)


if __name__ == "__main__":
    main()
