"""The conversation of a chat request as Anthropic's `system` and `messages`."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import msgspec

from contracts.errors import ErrorCode, HubError

Json = dict[str, Any]
_DATA_URL: Final = "data:"
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def unsupported(param: str, why: str = "") -> NoReturn:
    """Refuse a field that Anthropic cannot express.

    Raises:
        HubError: `unsupported_feature`, always.
    """
    message = f"Anthropic's models cannot take {param}{': ' + why if why else ''}; leave it out or use another model."
    raise HubError(ErrorCode.UNSUPPORTED_FEATURE, message, param=param)


def invalid(param: str, what: str) -> NoReturn:
    """Refuse a field that OpenAI's form does not allow either.

    Raises:
        HubError: `invalid_request`, always.
    """
    raise HubError(ErrorCode.INVALID_REQUEST, f"{param} must be {what}.", param=param)


def only(given: Json, allowed: Iterable[str], where: str) -> None:
    """Refuse members that are not known here; nulls count as absent.

    Raises:
        HubError: `unsupported_feature` naming the first one.
    """
    for name in given.keys() - set(allowed):
        if given[name] is not None:
            unsupported(f"{where}.{name}")


def conversation(given: object) -> tuple[list[Json], list[Json]]:
    """System blocks and messages.

    Leading system and developer messages become `system`, later ones keep their place. Tool results and the user's
    words that follow them become one user message, as Anthropic wants the results first in the next message.

    Raises:
        HubError: something in it that cannot be said to Anthropic, or is no conversation.
    """
    if not isinstance(given, list) or not given:
        invalid("messages", "a list with at least one message")
    system: list[Json] = []
    messages: list[Json] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            invalid(where, "an object")
        match message.get("role"):
            case "system" | "developer":
                only(message, ("role", "content"), where)
                blocks = _blocks(message.get("content"), f"{where}.content", _text_part)
                if messages:
                    messages.append({"role": "system", "content": blocks})
                else:
                    system += blocks
            case "user":
                only(message, ("role", "content"), where)
                _say(messages, "user", _blocks(message.get("content"), f"{where}.content", _user_part))
            case "assistant":
                _say(messages, "assistant", _assistant(message, where))
            case "tool":
                _say(messages, "user", [_tool_result(message, where)])
            case _:
                unsupported(f"{where}.role")
    return system, messages


def _say(messages: list[Json], role: str, blocks: list[Json]) -> None:
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += blocks
    elif blocks:
        messages.append({"role": role, "content": blocks})


def _assistant(message: Json, where: str) -> list[Json]:
    # Thinking comes back from clients without its signature, and Anthropic takes none without: it is left out, as
    # providers with `reasoning_content` ask for.
    only(message, ("role", "content", "refusal", "tool_calls", "reasoning_content", "annotations"), where)
    if message.get("annotations"):
        unsupported(f"{where}.annotations")
    blocks = _blocks(message.get("content"), f"{where}.content", _assistant_part)
    if isinstance(refusal := message.get("refusal"), str):
        blocks.append({"type": "text", "text": refusal})
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        invalid(f"{where}.tool_calls", "a list")
    return blocks + [_tool_use(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]


def _tool_use(call: object, where: str) -> Json:
    if not isinstance(call, dict):
        invalid(where, "an object")
    only(call, ("id", "type", "function", "index"), where)
    function = call.get("function")
    if call.get("type", "function") != "function" or not isinstance(function, dict):
        unsupported(f"{where}.type")
    only(function, ("name", "arguments"), f"{where}.function")
    arguments = function.get("arguments") or "{}"
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, TypeError):
        invalid(f"{where}.function.arguments", "the text of a JSON object")
    raw = msgspec.Raw(arguments.encode())
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": raw}


def _tool_result(message: Json, where: str) -> Json:
    only(message, ("role", "content", "tool_call_id", "cache_control"), where)
    block: Json = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
    block["content"] = _blocks(message.get("content"), f"{where}.content", _user_part)
    if message.get("cache_control") is not None:
        block["cache_control"] = message["cache_control"]
    return block


def _blocks(content: object, where: str, part: Callable[[Json, str], Json | None]) -> list[Json]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        invalid(where, "a text or a list of parts")
    blocks: list[Json] = []
    for number, given in enumerate(content):
        if not isinstance(given, dict):
            invalid(f"{where}[{number}]", "an object")
        block = part(given, f"{where}[{number}]")
        if block is not None:
            if given.get("cache_control") is not None:
                block["cache_control"] = given["cache_control"]
            blocks.append(block)
    return blocks


def _text_part(part: Json, where: str) -> Json | None:
    if part.get("type") != "text":
        unsupported(f"{where}.type")
    only(part, ("type", "text", "cache_control"), where)
    text = part.get("text")
    if not isinstance(text, str):
        invalid(f"{where}.text", "a text")
    return {"type": "text", "text": text} if text else None


def _assistant_part(part: Json, where: str) -> Json | None:
    if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        only(part, ("type", "refusal"), where)
        return {"type": "text", "text": part["refusal"]}
    return _text_part(part, where)


def _user_part(part: Json, where: str) -> Json | None:
    if part.get("type") != "image_url":
        return _text_part(part, where)
    only(part, ("type", "image_url", "cache_control"), where)
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(url, str):
        invalid(f"{where}.image_url.url", "a URL")
    only(image, ("url", "detail"), f"{where}.image_url")
    if image.get("detail") not in {None, "auto"}:
        unsupported(f"{where}.image_url.detail")
    return {"type": "image", "source": _image_source(url, f"{where}.image_url.url")}


def _image_source(url: str, where: str) -> Json:
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    kind, comma, data = url.partition(",")
    media_type, _, encoding = kind.removeprefix(_DATA_URL).partition(";")
    if not comma or not url.startswith(_DATA_URL) or encoding != "base64" or media_type not in _IMAGES:
        unsupported(where, "an image is an https URL or a base64 data URL of a JPEG, PNG, GIF or WebP")
    return {"type": "base64", "media_type": media_type, "data": data}
