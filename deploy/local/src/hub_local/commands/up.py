"""`hub up`: everything on one machine until Ctrl-C."""

import asyncio
import sys

from pydantic import ValidationError

from hub_local.console import Console
from hub_local.keeper import CONFIGURATION_ERROR
from hub_local.services import process_environment
from hub_local.settings import LocalSettings, read_settings
from hub_local.supervisor import Supervisor


def up() -> int:
    """Run NATS, PostgreSQL and all services here until Ctrl-C; returns the exit code."""
    environment = process_environment()
    try:
        settings: LocalSettings = read_settings(environment)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = "HUB_" + "__".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"hub: {name}: {problem['msg']}\n")
        return CONFIGURATION_ERROR
    console = Console(form=settings.log_format, verbose=environment.get("HUB_LOG_LEVEL") == "debug")
    return asyncio.run(Supervisor(settings, environment, console).run())
