"""Entry point: `python -m provider_router [--check]`."""

from provider_router.app import SERVICE, provider_router
from provider_router.settings import Settings
from runtime import process


def main() -> None:
    """Run the service until it is told to stop."""
    process.main(SERVICE, Settings, provider_router)


if __name__ == "__main__":
    main()
