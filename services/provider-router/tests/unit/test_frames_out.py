"""Frames to gateways: order per call, what waits for company and what never does."""

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import frames
from contracts.frames import FrameKind
from contracts.subjects import frames as frames_of
from contracts.subjects import inbox_frames
from provider_router.frames_out import DATA_WAIT_S, FramesOut, Lane

OTHERS = [FrameKind.ACCEPTED, FrameKind.HEAD, FrameKind.END, FrameKind.ERROR]
STEPS = st.tuples(
    st.integers(0, 3), st.sampled_from([FrameKind.DATA] * 4 + OTHERS), st.binary(min_size=1, max_size=5), st.booleans()
)


class Sent:
    """What a bus was given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []

    def send(self, subject: str, payload: bytes) -> None:
        self.messages.append((subject, payload))

    def frames(self) -> list[frames.Frame]:
        return [frame for _, payload in self.messages for frame in frames.unpack(payload)]


def frames_out(sent: Sent) -> FramesOut:
    return FramesOut(cast("Any", sent))


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_each_call_s_bytes_and_frames_arrive_in_order_and_without_a_gap(
    steps: list[tuple[int, FrameKind, bytes, bool]],
) -> None:
    sent = Sent()
    lanes = [Lane(f"gateway-{number % 2}", number) for number in range(4)]

    async def play() -> None:
        out = frames_out(sent)
        for number, kind, payload, turn in steps:
            if kind is FrameKind.DATA:
                out.data(lanes[number], payload)
            else:
                out.put(lanes[number], kind, payload)
            if turn:
                await asyncio.sleep(0)
        await asyncio.sleep(DATA_WAIT_S * 2)

    asyncio.run(play())
    for lane in lanes:
        arrived = [frame for frame in sent.frames() if frame[1] == lane.number]
        assert [sequence for _, _, sequence, _ in arrived] == list(range(len(arrived)))
        assert _joined([(kind, payload) for kind, _, _, payload in arrived]) == _joined(
            [(kind, payload) for number, kind, payload, _ in steps if number == lane.number]
        )


def _joined(told: list[tuple[FrameKind, bytes]]) -> list[tuple[FrameKind, bytes]]:
    """Neighbouring DATA as one."""
    joined: list[tuple[FrameKind, bytes]] = []
    for kind, payload in told:
        if kind is FrameKind.DATA and joined and joined[-1][0] is FrameKind.DATA:
            joined[-1] = (kind, joined[-1][1] + payload)
        else:
            joined.append((kind, payload))
    return joined


async def test_bytes_in_the_midst_wait_and_become_one_frame() -> None:
    sent = Sent()
    out, lane = frames_out(sent), Lane("g", 7)
    for piece in (b"a", b"b", b"c"):
        out.data(lane, piece)
        await asyncio.sleep(0)
    assert not sent.messages
    await asyncio.sleep(DATA_WAIT_S * 3)
    assert sent.frames() == [(FrameKind.DATA, 7, 0, b"abc")]


async def test_the_first_bytes_and_the_end_leave_in_the_same_turn() -> None:
    sent = Sent()
    out, lane = frames_out(sent), Lane("g", 7)
    out.put(lane, FrameKind.HEAD, b"h")
    out.data(lane, b"a")
    await asyncio.sleep(0)
    assert [frame[0] for frame in sent.frames()] == [FrameKind.HEAD, FrameKind.DATA]
    out.data(lane, b"b")
    out.put(lane, FrameKind.END, b"e")
    await asyncio.sleep(0)
    assert sent.frames()[2:] == [(FrameKind.DATA, 7, 2, b"b"), (FrameKind.END, 7, 3, b"e")]


async def test_a_message_is_bounded_and_nothing_is_lost_at_its_bound() -> None:
    sent = Sent()
    out, lane = frames_out(sent), Lane("g", 7)
    piece = b"x" * 700_000
    for _ in range(7):
        out.data(lane, piece)
    await asyncio.sleep(DATA_WAIT_S * 3)
    assert max(len(payload) for _, payload in sent.messages) < 2.1 * 2**20
    assert b"".join(frame[3] for frame in sent.frames()) == piece * 7
    assert [frame[2] for frame in sent.frames()] == list(range(len(sent.frames())))


async def test_frames_of_a_kept_answer_are_stored_too_each_call_s_by_itself() -> None:
    sent = Sent()
    out = frames_out(sent)
    kept, other, plain = Lane("g", 1, kept_as="one"), Lane("g", 2, kept_as="two"), Lane("g", 3)
    for lane in (kept, other, plain):
        out.put(lane, FrameKind.HEAD, b"h")
        out.data(lane, b"%d" % lane.number)
    await asyncio.sleep(DATA_WAIT_S * 3)
    out.put(kept, FrameKind.END, b"e")
    await asyncio.sleep(0)
    stored: dict[str, list[frames.Frame]] = {}
    for subject, payload in sent.messages:
        stored.setdefault(subject, []).extend(frames.unpack(payload))
    assert stored.keys() == {inbox_frames("g"), frames_of("one"), frames_of("two")}
    whole = [(FrameKind.HEAD, 1, 0, b"h"), (FrameKind.DATA, 1, 1, b"1"), (FrameKind.END, 1, 2, b"e")]
    assert stored[frames_of("one")] == whole
    assert stored[frames_of("two")] == [(FrameKind.HEAD, 2, 0, b"h"), (FrameKind.DATA, 2, 1, b"2")]
    assert [frame for frame in stored[inbox_frames("g")] if frame[1] == 1] == whole


async def test_each_gateway_hears_of_its_own_calls_only() -> None:
    sent = Sent()
    out = frames_out(sent)
    for name in ("one", "two"):
        out.put(Lane(name, 1), FrameKind.HEAD, name.encode())
    await asyncio.sleep(0)
    assert {(subject, next(frames.unpack(payload))[3]) for subject, payload in sent.messages} == {
        (inbox_frames("one"), b"one"),
        (inbox_frames("two"), b"two"),
    }
