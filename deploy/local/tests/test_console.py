import io
import json

from hub_local.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


EVENT = json.dumps({"event": "duty taken", "level": "info", "timestamp": "2026-11-26T01:02:03.456789Z", "duty": "a b"})


def test_an_event_is_one_plain_line_when_nobody_looks() -> None:
    out = io.StringIO()
    Console(out).relay("janitor", EVENT)
    assert out.getvalue() == 'janitor         | 01:02:03.456 info    duty taken duty="a b"\n'


def test_a_terminal_gets_a_colour_per_process() -> None:
    out = Terminal()
    console = Console(out)
    console.relay("janitor", EVENT)
    console.relay("gateway", EVENT)
    first, second = out.getvalue().splitlines()
    assert first.startswith("\x1b[36mjanitor")
    assert second.startswith("\x1b[35mgateway")


def test_json_passes_through_untouched_when_asked_for() -> None:
    out = io.StringIO()
    Console(out, form="json").relay("janitor", EVENT)
    assert out.getvalue() == f"{EVENT}\n"


def test_servers_are_quiet_in_good_order_and_heard_in_trouble() -> None:
    out = io.StringIO()
    console = Console(out)
    console.relay("postgres", "LOG:  database system is ready to accept connections")
    console.relay("nats", "[1] 2026/11/26 01:02:03 [INF] Server is ready")
    console.relay("postgres", "PANIC:  could not write to file: No space left on device")
    assert out.getvalue() == "postgres        | PANIC:  could not write to file: No space left on device\n"


def test_a_reader_who_leaves_stops_nothing() -> None:
    console = Console(Closed())
    console.relay("janitor", EVENT)
    console.say("still here")
