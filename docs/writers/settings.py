"""`settings.md`: every setting of every service and of the `hub` command."""

import types
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import gateway.settings
import hub_local.settings
import janitor.settings
import metering.settings
import provider_router.settings

_READERS: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("hub", hub_local.settings.LocalSettings),
    ("gateway", gateway.settings.Settings),
    ("provider-router", provider_router.settings.Settings),
    ("metering", metering.settings.Settings),
    ("janitor", janitor.settings.Settings),
)
_INTRODUCTION: Final = (
    "All come from the environment; empty means absent. `hub up` passes its environment on to the services and gives"
    " them addresses and passwords itself. `python -m <package> --check` prints what a service has read, without"
    " secrets."
)
_OTHERS: Final = """
Read by the `hub` command beside these:

| name | meaning |
|---|---|
| `HUB_ENV_FILE` | File of settings (`hub.env`), one `NAME=value` a line; the environment wins over it. |
| `HUB_ADMIN_NATS_URL` | `hub provision` on servers of one's own: NATS with the rights of user `provisioner`. |
| `HUB_ADMIN_DATABASE_URL` | `hub migrate` on servers of one's own: PostgreSQL as a role that may create schemas. |
| `HUB_KEY` | Access key of `hub chat`. |
| `HUB_POSTGRES_IDENTITY` | `setuid`: PostgreSQL of a hub that root starts runs as `nobody`, without user namespaces. |

Every service also reads OpenTelemetry's own `OTEL_*` variables (`OTEL_EXPORTER_OTLP_ENDPOINT` turns traces on), and the
tests read `HUB_TEST_INFRA` (`embedded` or `docker`).
"""


class Row(NamedTuple):
    """One setting as one service reads it."""

    name: str
    kind: str
    default: str
    meaning: str


def text() -> str:
    """The table; a setting that several services read alike stands in it once."""
    readers: dict[tuple[str, str, str], list[str]] = {}
    meanings: dict[tuple[str, str, str], str] = {}
    for service, settings in _READERS:
        for row in _rows(settings, "HUB_"):
            readers.setdefault(row[:3], []).append(service)
            meanings.setdefault(row[:3], row.meaning)
    lines = [
        f"| `{name}` | {kind} | {default} | {', '.join(services)} | {meanings[name, kind, default]} |"
        for (name, kind, default), services in sorted(readers.items())
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            _INTRODUCTION,
            "",
            "| name | type | default | read by | meaning |",
            "|---|---|---|---|---|",
            *lines,
            _OTHERS,
        ]
    )


def _rows(settings: type[BaseModel], prefix: str) -> list[Row]:
    rows = []
    for name, field in settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else prefix + name.upper()
        group = _group(field.annotation)
        if group is not None:
            rows += _rows(group, f"{variable}__<NAME>__")
            continue
        rows.append(Row(variable, _kind(field.annotation), _default(field), _meaning(field, settings, name)))
    return rows


def _group(annotation: Any) -> type[BaseModel] | None:
    """The model of a group of settings with a name in the middle."""
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        return value if isinstance(value, type) and issubclass(value, BaseModel) else None
    return None


def _meaning(field: FieldInfo, settings: type[BaseModel], name: str) -> str:
    if not field.description:
        raise ValueError(f"{settings.__module__}: setting {name} has no description")
    return field.description.replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, "", PydanticUndefined):
        return "—"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _kind(next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return "list"
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__)
    if annotation is SecretStr:
        return "secret"
    return {"int": "integer", "float": "number", "Decimal": "credits", "bool": "`true` or `false`", "str": "text"}.get(
        annotation.__name__, "path"
    )
