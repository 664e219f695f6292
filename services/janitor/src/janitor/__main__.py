"""`python -m janitor`: run the janitor until a signal stops it."""

from janitor.app import janitor
from janitor.settings import Settings
from runtime import process


def main() -> None:
    """Entry point of the service."""
    process.main("janitor", Settings, janitor)


if __name__ == "__main__":
    main()
