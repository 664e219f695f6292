"""The `hub` command. Commands are imported when they are called, so that `hub up` starts fast."""

import sys


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["up"] and len(sys.argv) == 2:  # noqa: PLR2004
        from hub_local.commands.up import up  # noqa: PLC0415

        raise SystemExit(up())
    from hub_local.commands.app import application, completed  # noqa: PLC0415

    application()(completed(sys.argv[1:]))


if __name__ == "__main__":
    main()
