"""The wire parser against nats-py's own, over streams cut anywhere."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from runtime.wire import WireParser

OURS, THEIRS = 7, 9
Heard = list[tuple[int, bytes, bytes, bytes, bytes | None]]


class Client:
    """What a parser needs of a client: notes what it is given."""

    def __init__(self) -> None:
        self.heard: Heard = []
        self.pings = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.heard.append((sid, bytes(subject), bytes(reply), data, headers))

    async def _process_ping(self) -> None:
        self.pings += 1


@st.composite
def _operations(draw: st.DrawFn) -> bytes:
    parts = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["msg", "hmsg", "ping", "ok"]))
        if kind == "ping":
            parts.append(b"PING\r\n")
            continue
        if kind == "ok":
            parts.append(b"+OK\r\n")
            continue
        sid = draw(st.sampled_from([OURS, THEIRS]))
        reply = draw(st.sampled_from([b"", b"_INBOX.a.b "]))
        payload = draw(st.binary(max_size=40) | st.sampled_from([b"MSG x 7 3\r\nabc\r\n", b"\r\n", b"x" * 5000]))
        if kind == "msg":
            parts.append(b"MSG a.b %d %b%d\r\n%b\r\n" % (sid, reply, len(payload), payload))
        else:
            headers = b"NATS/1.0\r\nNats-Msg-Id: x\r\n\r\n"
            size = len(headers) + len(payload)
            parts.append(b"HMSG a.b %d %b%d %d\r\n%b%b\r\n" % (sid, reply, len(headers), size, headers, payload))
    return b"".join(parts)


async def _read(parser: Parser, stream: bytes, cuts: list[int]) -> None:
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        await parser.parse(stream[at:cut])
        at = cut


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_messages_come_whole_and_in_order_wherever_the_reads_end(data: st.DataObject) -> None:
    stream = data.draw(_operations())
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    plain, ours = Client(), Client()

    def listener(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        ours.heard.append((OURS, subject, reply, payload, headers))

    asyncio.run(_read(Parser(plain), stream, []))
    asyncio.run(_read(WireParser(ours, {OURS: listener}), stream, cuts))

    assert ours.heard == plain.heard
    assert ours.pings == plain.pings


def test_a_new_connection_begins_with_nothing_half_read() -> None:
    ours = Client()

    def listener(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        ours.heard.append((OURS, subject, reply, payload, headers))

    async def reconnect() -> Any:
        parser = WireParser(ours, {OURS: listener})
        await parser.parse(b"MSG a 7 10\r\nabc")
        parser.reset()
        await parser.parse(b"MSG b 7 2\r\nhi\r\n")

    asyncio.run(reconnect())
    assert ours.heard == [(OURS, b"b", b"", b"hi", None)]
