"""Who may publish and subscribe to what on the bus: one NATS user per service, with no more rights than it needs.

Deployments render this table into their NATS configuration. A service answers requests into the inboxes of those who
may ask it; `answers` (NATS' `allow_responses`) is not used for the services of the bytes path, because the server
then remembers every reply subject that it delivers.
"""

from dataclasses import dataclass
from typing import Final

from contracts import streams, subjects
from contracts.rpc import rate_changes

GATEWAY: Final = "gateway"
ROUTER: Final = "provider-router"
METERING: Final = "metering"
JANITOR: Final = "janitor"
OPERATOR: Final = "operator"
PROVISIONER: Final = "provisioner"

_JS: Final = "$JS.API"
_CALLS: Final = streams.CALLS.name
_SETTLE: Final = streams.SETTLE.durable


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects of one user; wildcards as NATS has them."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    """May reply once to whatever it receives."""


def _inbox(user: str) -> str:
    return f"_INBOX.{user}.>"


def _read_bucket(bucket: streams.BucketSpec) -> tuple[str, ...]:
    """What nats-py's key-value client publishes to read and watch a bucket."""
    stream = f"KV_{bucket.name}"
    return (
        f"{_JS}.STREAM.INFO.{stream}",
        f"{_JS}.STREAM.MSG.GET.{stream}",
        f"{_JS}.DIRECT.GET.{stream}",
        f"{_JS}.DIRECT.GET.{stream}.>",
        f"{_JS}.CONSUMER.CREATE.{stream}",
        f"{_JS}.CONSUMER.CREATE.{stream}.>",
        f"{_JS}.CONSUMER.INFO.{stream}.>",
        f"{_JS}.CONSUMER.DELETE.{stream}.>",
        f"$JS.FC.{stream}.>",
        f"{_JS}.STREAM.NAMES",
    )


def _write_bucket(bucket: streams.BucketSpec, key: str = ">") -> tuple[str, ...]:
    return (*_read_bucket(bucket), f"$KV.{bucket.name}.{key}")


def _unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


USERS: Final[dict[str, Permissions]] = {
    GATEWAY: Permissions(
        publish=_unique(
            subjects.dispatch("*"),
            subjects.cancel("*"),
            f"{subjects.CALLS_REQUESTED}.*",
            f"{subjects.CALLS_FAILED}.*",
            subjects.IDENTITY_CHANGED,
            subjects.rpc(METERING, "*"),
            subjects.rpc(ROUTER, "*"),
            *_write_bucket(streams.REVISIONS, "identity"),
            f"{_JS}.DIRECT.GET.{streams.FRAMES.name}",
            _inbox(ROUTER),
            _inbox(OPERATOR),
        ),
        subscribe=(
            _inbox(GATEWAY),
            subjects.rpc(GATEWAY, "*"),
            subjects.IDENTITY_CHANGED,
            subjects.CATALOG_CHANGED,
            subjects.frames("*"),
        ),
    ),
    ROUTER: Permissions(
        publish=_unique(
            _inbox(GATEWAY),
            _inbox(JANITOR),
            _inbox(OPERATOR),
            subjects.frames("*"),
            f"{subjects.CALLS_COMPLETED}.*",
            f"{subjects.CALLS_FAILED}.*",
            subjects.CATALOG_CHANGED,
            subjects.rpc(METERING, "*"),
            *_write_bucket(streams.REVISIONS, "catalog"),
            *_write_bucket(streams.PROVIDER_HEALTH),
        ),
        subscribe=(
            _inbox(ROUTER),
            subjects.rpc(ROUTER, "*"),
            subjects.dispatch("*"),
            subjects.cancel("*"),
            subjects.CATALOG_CHANGED,
        ),
    ),
    METERING: Permissions(
        publish=(
            _inbox(GATEWAY),
            _inbox(ROUTER),
            _inbox(JANITOR),
            _inbox(OPERATOR),
            f"{subjects.USAGE_RECORDED}.*",
            f"{subjects.CREDIT}.*",
            f"{_JS}.CONSUMER.MSG.NEXT.{_CALLS}.{_SETTLE}",
            f"{_JS}.CONSUMER.INFO.{_CALLS}.{_SETTLE}",
            f"{_JS}.STREAM.INFO.{streams.USAGE.name}",
            f"{_JS}.STREAM.INFO.{_CALLS}",
            f"{_JS}.DIRECT.GET.{streams.USAGE.name}",
            f"{_JS}.DIRECT.GET.{_CALLS}",
            f"$JS.ACK.{_CALLS}.>",
        ),
        subscribe=(_inbox(METERING), subjects.rpc(METERING, "*")),
    ),
    JANITOR: Permissions(
        publish=_unique(
            subjects.rpc(METERING, "*"),
            subjects.rpc(ROUTER, rate_changes.RATES_CHECK),
            f"{subjects.CALLS_FAILED}.*",
            *_write_bucket(streams.DUTY_LEASES),
            *_write_bucket(streams.DUTY_RUNS),
        ),
        subscribe=(_inbox(JANITOR),),
    ),
    OPERATOR: Permissions(
        publish=_unique(
            subjects.rpc("*", "*"),
            f"{_JS}.STREAM.INFO.*",
            f"{_JS}.STREAM.NAMES",
            f"{_JS}.CONSUMER.INFO.*.*",
            f"{_JS}.CONSUMER.CREATE.{streams.USAGE.name}",
            f"{_JS}.CONSUMER.CREATE.{streams.USAGE.name}.>",
            f"{_JS}.CONSUMER.DELETE.{streams.USAGE.name}.>",
            f"{_JS}.CONSUMER.MSG.NEXT.{streams.USAGE.name}.>",
            f"$JS.ACK.{streams.USAGE.name}.>",
            f"$JS.FC.{streams.USAGE.name}.>",
            f"{_JS}.CONSUMER.CREATE.{streams.CREDIT.name}",
            f"{_JS}.CONSUMER.CREATE.{streams.CREDIT.name}.>",
            f"{_JS}.CONSUMER.DELETE.{streams.CREDIT.name}.>",
            f"{_JS}.CONSUMER.MSG.NEXT.{streams.CREDIT.name}.>",
            f"$JS.ACK.{streams.CREDIT.name}.>",
            f"$JS.FC.{streams.CREDIT.name}.>",
            *_read_bucket(streams.DUTY_RUNS),
        ),
        subscribe=(_inbox(OPERATOR), f"{subjects.USAGE_RECORDED}.*", f"{subjects.CREDIT}.*"),
    ),
    PROVISIONER: Permissions(publish=(f"{_JS}.>",), subscribe=(_inbox(PROVISIONER),)),
}
