"""`asyncapi.json`: every channel of the bus, from `contracts.catalogue`."""

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from contracts.catalogue import CHANNELS, Channel, Content, Model, Octets
from contracts.cloudevent import CONTENT_TYPE, UsageEvent
from contracts.rpc.envelope import Problem
from contracts.streams import STREAMS

_REF: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_PARAMETERS: Final = {
    "lane": "Dispatch lane; `interactive` for calls that somebody waits for.",
    "kind": "Kind of call, e.g. `chat`.",
    "level": "What a balance has come to: `low` or `depleted`.",
    "gateway": "Process id of a gateway.",
    "router": "Process id of a provider-router.",
    "service": "`gateway` or `provider-router`.",
    "process": "Process id.",
    "number": "The gateway's own number of the call.",
    "call_id": "Id of the call, a UUIDv7.",
}

Document = dict[str, Any]


def document() -> Document:
    """The AsyncAPI 3.0.0 document."""
    channels: Document = {}
    operations: Document = {}
    for channel in CHANNELS:
        channels[channel.name] = _channel(channel)
        if channel.reply is not None:
            channels[f"{channel.name}.reply"] = _reply_channel(channel, channel.reply)
        operations |= _operations(channel)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "AIGNE Hub on the bus",
            "version": metadata.version("aigne-hub-contracts"),
            "description": "Facts, questions and bytes between the services of the hub, and usage events for whoever"
            " subscribes. No account, model or other user text stands in a subject. Inside v1 fields are only added,"
            " always optional; readers ignore unknown fields.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "HUB_NATS_URL"}},
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas(_all_models())},
    }


def schemas(models: Iterable[Model]) -> Document:
    """JSON schemas of models and of all that they contain, by name.

    Raises:
        ValueError: two different types have the same name.
    """
    chosen = list(dict.fromkeys(models))
    structs = [model for model in chosen if issubclass(model, msgspec.Struct)]
    documents = [model for model in chosen if issubclass(model, BaseModel)]
    _, of_structs = msgspec.json.schema_components(structs, ref_template=_REF)
    _, of_models = models_json_schema(
        [(model, "validation") for model in documents], ref_template=_REF.replace("{name}", "{model}")
    )
    defined = of_models.get("$defs", {})
    twice = sorted(name for name in of_structs.keys() & defined.keys() if of_structs[name] != defined[name])
    if twice:
        raise ValueError(f"two types are called {', '.join(twice)}")
    return dict(sorted({**of_structs, **defined}.items()))


def _all_models() -> list[Model]:
    contents: list[Content] = [channel.content for channel in CHANNELS]
    contents += [channel.reply for channel in CHANNELS if channel.reply is not None]
    models: list[Model] = [Problem]
    for content in contents:
        models += content.holds if isinstance(content, Octets) else (content,)
    return models


def _ref(model: Model) -> Document:
    return {"$ref": _REF.format(name=model.__name__)}


def _channel(channel: Channel) -> Document:
    names = re.findall(r"{(\w+)}", channel.subject)
    described: Document = {
        "address": channel.subject,
        "description": channel.summary,
        "messages": {"message": _message(channel.content, channel.summary)},
    }
    if names:
        described["parameters"] = {name: {"description": _PARAMETERS[name]} for name in names}
    if channel.stream:
        stream = next(spec for spec in STREAMS if spec.name == channel.stream)
        described["x-jetstream"] = {"stream": stream.name, "storage": stream.storage, "maxAgeSeconds": stream.max_age_s}
    return described


def _reply_channel(channel: Channel, reply: Content) -> Document:
    return {
        "address": None,
        "description": f"Replies to {channel.name}, to the reply subject of the request.",
        "messages": {"message": _message(reply, f"Reply to: {channel.summary}", enveloped=True)},
    }


def _message(content: Content, summary: str, *, enveloped: bool = False) -> Document:
    if isinstance(content, Octets):
        message: Document = {
            "contentType": "application/octet-stream",
            "summary": summary,
            "description": content.description,
        }
        if content.holds:
            message["x-holds"] = [_ref(model) for model in content.holds]
        return message
    payload = _ref(content)
    if enveloped and issubclass(content, BaseModel):
        payload = {
            "type": "object",
            "description": "The value, or why it was refused.",
            "properties": {"ok": payload, "error": _ref(Problem)},
            "minProperties": 1,
            "maxProperties": 1,
        }
    content_type = CONTENT_TYPE if content is UsageEvent else _JSON
    return {"name": content.__name__, "contentType": content_type, "summary": summary, "payload": payload}


def _operations(channel: Channel) -> Document:
    here = {"$ref": f"#/channels/{channel.name}"}
    operations: Document = {}
    for action, services in (("send", channel.senders), ("receive", channel.receivers)):
        for service in services:
            operation: Document = {
                "action": action,
                "channel": here,
                "summary": f"{service} {action}s: {channel.summary}",
                "messages": [{"$ref": f"#/channels/{channel.name}/messages/message"}],
                "tags": [{"name": service}],
            }
            if channel.reply is not None:
                name = f"{channel.name}.reply"
                operation["reply"] = {
                    "channel": {"$ref": f"#/channels/{name}"},
                    "messages": [{"$ref": f"#/channels/{name}/messages/message"}],
                }
            if channel.queue and action == "receive":
                operation["bindings"] = {"nats": {"queue": channel.queue, "bindingVersion": "0.1.0"}}
            operations[f"{service}.{action}.{channel.name}"] = operation
    return operations
