"""A standing pull request on a durable consumer of a real server."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from contracts import permissions, subjects
from contracts.streams import CALLS, SETTLE
from runtime.bus import Bus, StandingPull

FAILED = subjects.calls_failed(subjects.CallKind.CHAT)


@dataclass
class Puller:
    """Keeps what comes; acks at once unless told otherwise."""

    bus: Bus
    ack: bool = True
    batch: int = 512
    expires_s: float = 20.0
    got: list[bytes] = field(default_factory=list)
    unacked: list[bytes] = field(default_factory=list)

    async def start(self) -> "Puller":
        self.pull = StandingPull(self.bus, CALLS.name, SETTLE.durable, self._on_message, self.batch, self.expires_s)
        await self.pull.start(self.bus._inbox_prefix.decode())
        return self

    def _on_message(self, subject: str, ack_subject: bytes, payload: bytes) -> None:
        assert subject == FAILED
        self.got.append(payload)
        if self.ack:
            self.pull.ack(ack_subject)
        else:
            self.unacked.append(ack_subject)


async def publish(bus: Bus, *payloads: bytes) -> None:
    for payload in payloads:
        await bus.jetstream().publish(FAILED, payload)


async def pending(nats: Any) -> tuple[int, int]:
    """Messages not yet delivered, and delivered but not acknowledged."""
    bus = await nats.connect(permissions.PROVISIONER)
    info = await bus.jetstream().consumer_info(CALLS.name, SETTLE.durable)
    await bus.close()
    return info.num_pending or 0, info.num_ack_pending or 0


async def test_messages_come_as_they_are_stored_beyond_one_batch(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    puller = await Puller(await nats.connect(permissions.METERING), batch=10).start()
    payloads = [b"%d" % number for number in range(55)]
    await publish(janitor, *payloads)
    await until(lambda: len(puller.got) == 55, "all messages")
    assert puller.got == payloads
    await puller.bus.flush()
    assert await pending(nats) == (0, 0)
    await janitor.close()
    await puller.bus.close()


async def test_refused_message_comes_again_after_its_delay(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    puller = await Puller(await nats.connect(permissions.METERING), ack=False).start()
    await publish(janitor, b"fact")
    await until(lambda: puller.got == [b"fact"], "the first delivery")
    puller.pull.nak(puller.unacked.pop(), 0.1)
    await until(lambda: puller.got == [b"fact", b"fact"], "the second delivery")
    puller.pull.term(puller.unacked.pop())
    await puller.bus.flush()
    assert await pending(nats) == (0, 0)
    await janitor.close()
    await puller.bus.close()


async def test_other_instance_gets_what_a_dead_one_left_unacknowledged(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    dead = await Puller(await nats.connect(permissions.METERING), ack=False).start()
    await publish(janitor, b"fact")
    await until(lambda: dead.got == [b"fact"], "the first delivery")
    dead.pull.nak(dead.unacked.pop(), 1.0)
    dead.pull.stop()
    await dead.bus.flush()
    await dead.bus.close()
    heir = await Puller(await nats.connect(permissions.METERING)).start()
    await until(lambda: heir.got == [b"fact"], "the second delivery")
    await janitor.close()
    await heir.bus.close()


def requests(bus: Bus) -> list[int]:
    """Sizes of the requests that a bus sends from now on."""
    sizes: list[int] = []
    send = bus.send

    def recording(subject: str, payload: bytes, reply: str = "", headers: bytes = b"") -> None:
        if ".MSG.NEXT." in subject:
            sizes.append(msgspec.json.decode(payload)["batch"])
        send(subject, payload, reply, headers)

    bus.send = recording  # type: ignore[method-assign]
    return sizes


async def test_request_that_expires_is_made_again(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    bus = await nats.connect(permissions.METERING)
    sizes = requests(bus)
    puller = await Puller(bus, batch=8, expires_s=0.2).start()
    await until(lambda: len(sizes) >= 3, "two requests have expired")
    assert set(sizes) == {8}
    await publish(janitor, b"fact")
    await until(lambda: puller.got == [b"fact"], "the message")
    await janitor.close()
    await bus.close()


async def test_no_more_than_a_batch_is_asked_for_at_a_time(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    bus = await nats.connect(permissions.METERING)
    sizes = requests(bus)
    puller = await Puller(bus, batch=10).start()
    for _ in range(30):
        await publish(janitor, b"fact")
    await until(lambda: len(puller.got) == 30, "all messages")
    assert sizes[0] == 10
    assert sum(sizes) - len(puller.got) <= 10
    await janitor.close()
    await bus.close()


async def test_consumer_that_is_made_again_is_found_again(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    puller = await Puller(await nats.connect(permissions.METERING)).start()
    administrator = await nats.connect(permissions.PROVISIONER)
    await administrator.jetstream().delete_stream(CALLS.name)
    await administrator.close()
    await nats.provision()
    await publish(janitor, b"fact")
    await until(lambda: puller.got == [b"fact"], "the message")
    await janitor.close()
    await puller.bus.close()


async def test_stopped_pull_asks_for_no_more(nats: Any, until: Any) -> None:
    janitor = await nats.connect(permissions.JANITOR)
    puller = await Puller(await nats.connect(permissions.METERING), batch=2).start()
    puller.pull.stop()
    await publish(janitor, *(b"%d" % number for number in range(5)))
    await until(lambda: len(puller.got) == 2, "what had been asked for")
    await puller.bus.flush()
    assert await pending(nats) == (3, 0)
    await janitor.close()
    await puller.bus.close()


async def test_messages_come_again_after_the_server_was_killed(own_nats: Any, until: Any) -> None:
    janitor = await own_nats.connect(permissions.JANITOR)
    puller = await Puller(await own_nats.connect(permissions.METERING)).start()
    await publish(janitor, b"before")
    await until(lambda: puller.got == [b"before"], "the first message")
    await puller.bus.flush()
    await own_nats.kill()
    await until(lambda: not (puller.bus.is_connected or janitor.is_connected), "both see it")
    await own_nats.start()
    await until(lambda: puller.bus.is_connected and janitor.is_connected, "both are back")
    await publish(janitor, b"after")
    await until(lambda: b"after" in puller.got, "the next message")
    await janitor.close()
    await puller.bus.close()
