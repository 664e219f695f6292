"""The `hub` command. Commands are imported when they are called, so that `hub up` starts fast."""

import sys

from hub_local.commands.app import app


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["up"] and len(sys.argv) == 2:  # noqa: PLR2004
        from hub_local.commands.up import up  # noqa: PLC0415

        raise SystemExit(up())
    app()


if __name__ == "__main__":
    main()
