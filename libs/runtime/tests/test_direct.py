"""The direct reader beside nats-py's read loop: everything arrives once and in order, whichever way it takes."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from contracts import permissions, subjects
from contracts.rpc import metering
from runtime.direct import DirectReader
from runtime.wire import WireParser

SUBJECT = subjects.rpc(metering.SERVICE, "echo")
OURS, THEIRS = 7, 9


class Client:
    """What a parser needs of a client; takes a turn of the loop for each message of its own."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self.pings = 0

    async def _process_msg(self, sid: int, _subject: bytes, _reply: bytes, data: bytes, _headers: Any) -> None:
        await asyncio.sleep(0)
        self.heard.append((sid, data))

    async def _process_ping(self) -> None:
        self.pings += 1


def _message(sid: int, payload: bytes) -> bytes:
    return b"MSG a %d %d\r\n%b\r\n" % (sid, len(payload), payload)


OPERATION = st.one_of(
    st.builds(_message, st.sampled_from([OURS, OURS, THEIRS]), st.binary(max_size=30) | st.just(b"x" * 3000)),
    st.just(b"PING\r\n"),
)


async def _through(client: Client, parser: Parser, stream: bytes, cuts: list[tuple[int, bool]]) -> None:
    """Feed the stream in pieces, with a turn of the loop where asked, while a loop like nats-py's reads."""
    loop = asyncio.get_running_loop()
    direct = isinstance(parser, WireParser)
    reader: Any = DirectReader(parser, 1000, loop) if isinstance(parser, WireParser) else asyncio.StreamReader()

    async def read_loop() -> None:
        while not reader.at_eof():
            if direct:
                reader.direct = True
            data = await reader.read(100)
            if direct:
                reader.direct = False
            await parser.parse(data)

    reading = asyncio.create_task(read_loop())
    at = 0
    for cut, turn in [*sorted(cuts), (len(stream), True)]:
        reader.feed_data(stream[at:cut])
        at = cut
        if turn:
            await asyncio.sleep(0)
    reader.feed_eof()
    await asyncio.wait_for(reading, 5)
    await asyncio.sleep(0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_both_ways_together_are_one_stream(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(OPERATION, max_size=12)))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, len(stream)), st.booleans()), max_size=8))
    plain, ours = Client(), Client()
    asyncio.run(_through(plain, Parser(plain), stream, []))
    wire = WireParser(ours, {OURS: lambda _s, _r, payload, _h: ours.heard.append((OURS, payload))})
    asyncio.run(_through(ours, wire, stream, cuts))
    assert ours.heard == plain.heard
    assert ours.pings == plain.pings


async def test_large_messages_and_ordinary_subscriptions_on_one_connection(nats: Any, until: Any) -> None:
    owner, asker = await nats.connect(permissions.METERING), await nats.connect(permissions.JANITOR)
    listened: list[bytes] = []
    subscribed: list[bytes] = []

    async def other(message: Any) -> None:
        subscribed.append(message.data)

    await owner.listen(SUBJECT, lambda _s, _r, payload, _h: listened.append(payload))
    await owner.subscribe(SUBJECT, cb=other)
    await owner.flush()
    sent = [bytes([65 + n]) * size for n, size in enumerate((1, 700_000, 33_000, 900_000, 5))]
    for payload in sent:
        asker.send(SUBJECT, payload)
    await until(lambda: len(listened) == len(subscribed) == len(sent), "all messages")
    assert listened == subscribed == sent
    await owner.close()
    await asker.close()
