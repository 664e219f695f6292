"""Everything that travels on the bus of a hub, as its users may hear it, and what lies in its streams."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rig import messages
from rig.hub import Hub

from contracts.permissions import PROVISIONER, USERS
from runtime.bus import no_responders

_JETSTREAM: Final = (b'"stream":', b'"type":"io.nats.jetstream.api')
"""What acknowledgements and answers of JetStream hold."""


class Heard(NamedTuple):
    """One message."""

    subject: str
    reply: str
    payload: bytes
    headers: bytes | None


@dataclass
class Tap:
    """Messages in the order of hearing."""

    heard: list[Heard] = field(default_factory=list)

    def validated(self) -> set[str]:
        """Hold every message against the AsyncAPI document; names of the channels that were used.

        Raises:
            rig.messages.UndocumentedError: a message that the document has not, or describes otherwise.
        """
        asked_for = [
            message for message in self.heard if ".rpc." in message.subject or message.subject.endswith(".alive")
        ]
        requests = {message.reply: message.subject for message in asked_for if message.reply}
        names = set()
        for message in self.heard:
            asked = requests.get(message.subject)
            if asked is not None:
                if not no_responders(message.headers):
                    names.add(messages.validate_reply(asked, message.payload))
            elif not _is_servers(message):
                names.add(messages.validate(message.subject, message.payload))
        return names

    def about(self, call_id: str) -> list[str]:
        """Subjects of the messages that name a call."""
        return [message.subject for message in self.heard if call_id.encode() in message.payload]


def _is_question(subject: str) -> bool:
    return ".rpc." in subject or subject.endswith(".alive")


def _is_servers(message: Heard) -> bool:
    """Whether the NATS server said it: answers of JetStream, and entries of key-value buckets."""
    if message.subject.startswith("$KV."):
        return True
    status = message.headers is not None and not message.payload
    return message.subject.startswith("_INBOX.") and (status or any(mark in message.payload for mark in _JETSTREAM))


@asynccontextmanager
async def tapped(hub: Hub) -> AsyncIterator[Tap]:
    """Listen as every user to all that it may hear."""
    tap = Tap()

    def hear(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        tap.heard.append(Heard(subject.decode(), reply.decode(), bytes(payload), headers))

    async with AsyncExitStack() as stack:
        for user, permissions in USERS.items():
            bus = await hub.connect(user)
            stack.push_async_callback(bus.close)
            for subject in permissions.subscribe:
                await bus.listen(subject, hear)
            await bus.flush()
        yield tap


class Stored(NamedTuple):
    """A message of a stream."""

    sequence: int
    subject: str
    payload: bytes
    headers: dict[str, str]


async def last_sequence(hub: Hub, stream: str) -> int:
    """Number of the newest message of a stream."""
    bus = await hub.connect(PROVISIONER)
    try:
        return (await bus.jetstream().stream_info(stream)).state.last_seq
    finally:
        await bus.close()


async def stored(hub: Hub, stream: str, after: int) -> list[Stored]:
    """Messages of a stream behind a number, oldest first."""
    bus = await hub.connect(PROVISIONER)
    try:
        js = bus.jetstream()
        last = (await js.stream_info(stream)).state.last_seq
        found = []
        for sequence in range(after + 1, last + 1):
            message = await js.get_msg(stream, seq=sequence)
            found.append(Stored(sequence, message.subject or "", message.data or b"", message.headers or {}))
        return found
    finally:
        await bus.close()
