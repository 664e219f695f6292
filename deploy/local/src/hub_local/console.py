"""What the supervisor prints: one line per event, prefixed by its process, coloured on a terminal."""

import json
import sys
from typing import Any, Final, TextIO

_COLOURS: Final = ("36", "35", "34", "32", "33", "96", "95", "94")
_LEVEL_COLOURS: Final = {"warning": "33", "error": "31", "critical": "31"}
_NOISE: Final = (
    "LOG:", "NOTICE:", "[INF]", "[DBG]", "HINT:", "STATEMENT:", "DETAIL:", "CONTEXT:",
    "Plaintext passwords detected",  # in a file that only its owner reads, beside the same passwords
    "failed to be ready for connections",  # our own question whether it is ready
    "the database system is starting up",  # our own question whether it is ready
    "the database system is shutting down",
)  # fmt: skip
"""What the servers say in good order; shown with HUB_LOG_LEVEL=debug."""
_HIDDEN: Final = frozenset({"event", "level", "timestamp", "service", "process"})
_NAME_WIDTH: Final = 15


class Console:
    """Writes lines to a stream; JSON passes through untouched when that was asked for."""

    def __init__(self, out: TextIO = sys.stdout, *, form: str = "console", verbose: bool = False) -> None:
        self._out = out
        self._colour = form == "console" and out.isatty()
        self._json = form == "json"
        self._verbose = verbose
        self._colours: dict[str, str] = {}
        self._gone = False

    def say(self, text: str, *, error: bool = False) -> None:
        """A line of the supervisor itself."""
        self._write("hub", text, "31" if error else "1")

    def plain(self, text: str) -> None:
        """Lines for the person who started it, without a prefix."""
        self._print(text)

    def relay(self, name: str, line: str) -> None:
        """A line that a process wrote."""
        if name in {"nats", "postgres"} and not self._verbose and any(mark in line for mark in _NOISE):
            return
        event = _event(line)
        if event is None or self._json:
            self._write(name, line)
            return
        level = str(event.get("level", "info"))
        rest = " ".join(f"{key}={_value(value)}" for key, value in event.items() if key not in _HIDDEN)
        time = str(event.get("timestamp", ""))[11:23]
        self._write(name, f"{time} {level:<7} {event.get('event', '')} {rest}".rstrip(), _LEVEL_COLOURS.get(level, ""))

    def _write(self, name: str, text: str, colour: str = "") -> None:
        if self._json and text.startswith("{"):
            self._print(text)
        elif self._colour:
            own = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            body = f"\x1b[{colour}m{text}\x1b[0m" if colour else text
            self._print(f"\x1b[{own}m{name:<{_NAME_WIDTH}}\x1b[0m │ {body}")
        else:
            self._print(f"{name:<{_NAME_WIDTH}} | {text}")

    def _print(self, line: str) -> None:
        if self._gone:
            return
        try:
            self._out.write(f"{line}\n")
            self._out.flush()
        except OSError:
            self._gone = True  # whoever read along has left; the hub goes on without a listener


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if " " in text and "\n" not in text else text
