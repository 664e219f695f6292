"""The four services as programs: each with its own secrets and nobody else's."""

import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from contracts.permissions import GATEWAY, JANITOR, METERING, ROUTER
from hub_local.credentials import Credentials
from hub_local.migrate import OWNERS
from hub_local.programs import Program, http_status
from hub_local.servers import Ports
from hub_local.settings import LocalSettings

PACKAGES: Final = {GATEWAY: "gateway", ROUTER: "provider_router", METERING: "metering", JANITOR: "janitor"}
"""Services in the order in which they are drained, and their packages."""

_EVERYBODY: Final = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|SSL_CERT_FILE|SSL_CERT_DIR|VIRTUAL_ENV|PYTHON(UNBUFFERED|DONTWRITEBYTECODE"
    r"|WARNINGS|HASHSEED|DEVMODE|ASYNCIODEBUG)|OTEL_\w+|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy|HUB_\w+"
)
_ONLY: Final = {
    GATEWAY: re.compile(r"HUB_(BOOTSTRAP_KEY|KEY_PEPPER|PORT|HOST)"),
    ROUTER: re.compile(r"HUB_PROVIDERS__\w+|(OPENAI|ANTHROPIC)_(API_KEY|BASE_URL)"),
    METERING: re.compile(r"HUB_PAYMENT_KIT_\w+"),
}
_OURS: Final = re.compile(r"HUB_(NATS_URL|DATABASE_URL|OPS_PORT|OPS_HOST|FAIL|LOG_FORMAT|KEY)")
"""Set by the supervisor, or meant for the `hub` command."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of a service."""

    service: str
    number: int
    ops_port: int
    http_port: int | None = None

    @property
    def name(self) -> str:
        """`gateway`, `gateway-2` and so on."""
        return self.service if self.number == 1 else f"{self.service}-{self.number}"


def counts(settings: LocalSettings) -> dict[str, int]:
    """How many processes of each service, in the order of draining."""
    return {
        GATEWAY: settings.gateways,
        ROUTER: settings.routers,
        METERING: settings.meterings,
        JANITOR: settings.janitors,
    }


def names(settings: LocalSettings) -> list[str]:
    """Names of all processes."""
    return [Instance(service, n, 0).name for service, count in counts(settings).items() for n in range(1, count + 1)]


def instances(settings: LocalSettings, ops_ports: Mapping[str, int], http_ports: list[int]) -> list[Instance]:
    """All processes with their ports; `ops_ports` by name, `http_ports` one per gateway."""
    return [
        Instance(
            service,
            number,
            ops_ports[Instance(service, number, 0).name],
            http_ports[number - 1] if service == GATEWAY else None,
        )
        for service, count in counts(settings).items()
        for number in range(1, count + 1)
    ]


def program(
    instance: Instance,
    settings: LocalSettings,
    environment: Mapping[str, str],
    credentials: Credentials,
    ports: Ports,
    bootstrap_key: str | None,
) -> Program:
    """How to run one process of a service."""
    package = PACKAGES[instance.service]
    env = inherited(instance.service, environment) | {
        "HUB_NATS_URL": credentials.nats_url(instance.service, ports.nats),
        "HUB_OPS_HOST": "127.0.0.1",
        "HUB_OPS_PORT": str(instance.ops_port),
        "HUB_LOG_FORMAT": "json",
        "HUB_DATA_DIR": str(settings.data_dir.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    if package in OWNERS:
        env["HUB_DATABASE_URL"] = credentials.dsn(package, ports.postgres)
    if instance.service == GATEWAY:
        env["HUB_HOST"] = settings.host
        env["HUB_PORT"] = str(instance.http_port)
        env.setdefault("HUB_KEY_PEPPER", credentials.key_pepper)
        if bootstrap_key is not None:
            env["HUB_BOOTSTRAP_KEY"] = bootstrap_key
    return Program(
        name=instance.name,
        command=(sys.executable, "-m", package),
        env=env,
        ready=functools.partial(_is_ready, instance),
        stop_within_s=settings.drain_s + 5.0,
    )


def inherited(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a service sees of the supervisor's environment."""
    return {
        name: value
        for name, value in environment.items()
        if ((own := _ONLY.get(service)) is not None and own.fullmatch(name))
        or (
            _EVERYBODY.fullmatch(name)
            and not _OURS.fullmatch(name)
            and not any(only.fullmatch(name) for only in _ONLY.values())
        )
    }


def armed(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The failpoints of one service out of `HUB_FAIL`; points are named `<package>.<where>`.

    They are armed at a process' first start only: a process that a failpoint killed comes back healthy.
    """
    prefix = f"{PACKAGES[service]}."
    points = [point.strip() for point in environment.get("HUB_FAIL", "").split(",")]
    own = ",".join(point for point in points if point.startswith(prefix))
    return {"HUB_FAIL": own} if own else {}


async def _is_ready(instance: Instance) -> bool:
    return await http_status(instance.ops_port, "/readyz") == 200  # noqa: PLR2004


def process_environment() -> dict[str, str]:
    """The supervisor's own environment, with the settings file where one is named.

    `HUB_ENV_FILE` (default `hub.env` in the working directory) holds `NAME=value` lines; the environment wins.
    """
    environment = dict(os.environ)
    file = environment.get("HUB_ENV_FILE", "hub.env")
    if os.path.exists(file):  # noqa: PTH110 - one stat at start
        from dotenv import dotenv_values  # noqa: PLC0415 - rarely needed

        for name, value in dotenv_values(file).items():
            if value is not None:
                environment.setdefault(name, value)
    return environment
