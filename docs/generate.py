# ruff: noqa: INP001 - a script, not part of a package
"""Write the generated documents; with `--check`, only say which of them differ from the code.

It imports all services, so it lives outside them.
"""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from writers import asyncapi, errors, openapi, parity, settings

_DOCS: Final = Path(__file__).parent


def _json(document: dict[str, Any]) -> str:
    return json.dumps(_cleaned(document), indent=2, ensure_ascii=False) + "\n"


def _cleaned(node: Any) -> Any:
    """The same with docstrings unindented: Python 3.13 does it by itself, earlier ones do not."""
    if isinstance(node, list | tuple):
        return [_cleaned(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: inspect.cleandoc(value) if key == "description" and isinstance(value, str) else _cleaned(value)
        for key, value in node.items()
    }


DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "asyncapi.json": lambda: _json(asyncapi.document()),
    "openapi.json": lambda: _json(openapi.document()),
    "errors.md": errors.text,
    "settings.md": settings.text,
    "parity.md": lambda: parity.text(_DOCS.parent),
}


def main(arguments: list[str]) -> int:
    """Exit code 1 when a check found a difference."""
    check = arguments == ["--check"]
    if arguments and not check:
        sys.stderr.write("usage: python docs/generate.py [--check]\n")
        return 2
    differing = []
    for name, write in DOCUMENTS.items():
        file, text = _DOCS / name, write()
        if not file.exists() or file.read_text("utf-8") != text:
            differing.append(name)
            if not check:
                file.write_text(text, "utf-8")
    for name in differing:
        sys.stdout.write(f"docs/{name} {'differs from the code: run `make docs`' if check else 'written'}\n")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
