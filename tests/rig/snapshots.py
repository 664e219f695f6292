"""Schemas of all messages as they were published, and what may change in them.

`PYTHONPATH=tests python -m rig.snapshots --update` writes what is new; it refuses what an old reader or writer would
not survive. Such a change is a new subject under `v2`; before the first release, `--update --break` writes it anyway.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic.json_schema import models_json_schema

from contracts.catalogue import CHANNELS, Channel, Content, Model, Octets

FOLDER: Final = Path(__file__).parents[1] / "contracts" / "snapshots"
_REF: Final = "#/$defs/{name}"
_WORDS: Final = {"title", "description", "examples"}
"""What no program reads."""
_BY_NAME: Final = {"properties", "$defs", "holds"}
"""Keys under which names lead to schemas."""

Schema = dict[str, Any]


def current() -> dict[str, Schema]:
    """Snapshot of every channel, by its name."""
    return {channel.name: _snapshot(channel) for channel in CHANNELS}


def committed() -> dict[str, Schema]:
    """The snapshots in the repository."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def breaks(old: Schema, new: Schema, where: str = "") -> list[str]:
    """Why readers or writers of the old schema would not understand the new one; empty = they would.

    Allowed: new optional properties, new definitions, new values of an enumeration (readers map unknown ones to
    `other`).
    """
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        place = f"{where}/{key}"
        if key in _BY_NAME:
            found += _broken_members(old.get(key, {}), new.get(key, {}), place)
        elif key == "required":
            found += _broken_required(old, new, place)
        elif key == "enum" and key in old and key in new:
            found += [f"{place}: {value!r} is gone" for value in old[key] if value not in new[key]]
        elif key not in old or key not in new:
            found.append(f"{place}: {'added' if key in new else 'removed'}")
        else:
            found += _broken_value(old[key], new[key], place)
    return found


def _broken_members(old: Schema, new: Schema, where: str) -> list[str]:
    gone = [f"{where}/{name}: removed" for name in old if name not in new]
    changed = [text for name in old if name in new for text in breaks(old[name], new[name], f"{where}/{name}")]
    return gone + changed


def _broken_required(old: Schema, new: Schema, where: str) -> list[str]:
    before, now = set(old.get("required", ())), set(new.get("required", ()))
    return [f"{where}: {name} is required now" for name in sorted(now - before)] + [
        f"{where}: {name} may be missing now" for name in sorted(before - now)
    ]


def _broken_value(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return breaks(old, new, where)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [text for number, (a, b) in enumerate(pairs) for text in _broken_value(a, b, f"{where}/{number}")]
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]


def _snapshot(channel: Channel) -> Schema:
    snapshot: Schema = {"subject": channel.subject, "content": _schema(channel.content)}
    if channel.reply is not None:
        snapshot["reply"] = _schema(channel.reply)
    return snapshot


def _schema(content: Content) -> Schema:
    if isinstance(content, Octets):
        return {"holds": {model.__name__: _bare(_model_schema(model)) for model in content.holds}}
    bare: Schema = _bare(_model_schema(content))
    return bare


def _bare(schema: Any) -> Any:
    """A schema without its words."""
    if isinstance(schema, list | tuple):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _bare(member) for name, member in value.items()} if key in _BY_NAME else _bare(value)
        for key, value in schema.items()
        if key not in _WORDS
    }


def _model_schema(model: Model) -> Schema:
    if issubclass(model, msgspec.Struct):
        (root,), defined = msgspec.json.schema_components([model], ref_template=_REF)
        return {**root, "$defs": dict(sorted(defined.items()))}
    _, defined = models_json_schema([(model, "validation")], ref_template=_REF.replace("{name}", "{model}"))
    return {"$ref": _REF.format(name=model.__name__), "$defs": dict(sorted(defined["$defs"].items()))}


def main(arguments: list[str]) -> int:
    """Exit code 1 when a change is refused."""
    if arguments not in (["--update"], ["--update", "--break"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    old, new = committed(), current()
    broken = [f"{name}: removed" for name in old if name not in new]
    broken += [f"{name}{text}" for name in new if name in old for text in breaks(old[name], new[name])]
    if broken and "--break" not in arguments:
        sys.stderr.write("\n".join(["these changes are incompatible:", *broken, ""]))
        return 1
    for name in old.keys() - new.keys():
        (FOLDER / f"{name}.json").unlink()
    for name, snapshot in new.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(f"{len(new)} snapshots written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
