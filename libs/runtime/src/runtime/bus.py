"""The bus: nats-py's client, and below its public API the two calls that the bytes path needs.

`listen` runs a plain function for each message while the read is being parsed; nats-py's own `subscribe` puts each
message through a queue and a task (measured: 15 µs against 5 a message, `hot-path.md`). `send` appends to the
client's write buffer and writes once per turn of the event loop. Everything else (connect, reconnect, TLS, nkeys,
JetStream management, subscriptions after a reconnect) stays nats-py's. Its internals used here: `_process_msg`,
`_ps` (see `runtime.wire`), `_pending`, `_pending_data_size`, `_transport`, `_max_pending_size`, `_max_payload`; nats-py
is pinned, and `tests/test_bus.py` runs them against a real server, reconnects included.
"""

import asyncio
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from nats import errors
from nats.aio.client import Client, Srv
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from runtime.direct import DirectTransport
from runtime.wire import WireParser

_log = structlog.get_logger("bus")
_NO_RESPONDERS: Final = b"NATS/1.0 503"
_EXPIRED: Final = b"NATS/1.0 408"
_LEFT: Final = b"Nats-Pending-Messages: "
_TCP: Final = frozenset(("nats", "tls"))
_WRITE_BUFFER_MAX: Final = 32 * 2**20

Listener = Callable[[bytes, bytes, bytes, bytes | None], None]
"""subject, reply, payload, raw headers (None when the message has none)."""
OnReply = Callable[[bytes | None, bytes | None], None]
"""payload, raw headers; payload None = nothing came in time."""


def no_responders(headers: bytes | None) -> bool:
    """Whether a reply is the server's word that nobody listens on the subject."""
    return headers is not None and headers.startswith(_NO_RESPONDERS)


def header_block(**headers: str) -> bytes:
    """NATS headers as bytes for `send` and `ask`; underscores in names become hyphens.

    Values are ours (ids, content types), never user text.
    """
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class Bus(Client):
    """A connection with synchronous listening, sending and asking on top of nats-py's client."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Listener] = {}
        self._wire = WireParser(self, self._listeners)
        self._ps: Parser = self._wire
        self._asked: dict[bytes, tuple[OnReply, asyncio.TimerHandle]] = {}
        self._tokens = itertools.count(1)
        self._flush_due = False
        self._ask_prefix = ""
        self._after_reconnect: list[Callable[[], None]] = []

    async def open(self, url: str, *, name: str, inbox_prefix: str, tls: ssl.SSLContext | None = None) -> None:
        """Connect and keep reconnecting for ever.

        Raises:
            nats.errors.Error, OSError: the first connection could not be made.
        """
        await self.connect(
            url,
            name=name,
            inbox_prefix=inbox_prefix.encode(),
            tls=tls,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=_WRITE_BUFFER_MAX,
            error_cb=_report_error,
            disconnected_cb=_report_disconnect,
            reconnected_cb=self._reconnected,
        )
        self._ask_prefix = f"{inbox_prefix}.ask."
        await self.listen(f"{self._ask_prefix}*", self._on_reply)

    def after_reconnect(self, react: Callable[[], None]) -> None:
        """Run `react` each time the connection is back; subscriptions have been made again by then."""
        self._after_reconnect.append(react)

    async def listen(self, subject: str, listener: Listener, queue: str = "") -> Subscription:
        """Run `listener` for every message on a subject, in order, inside the read.

        The listener must not block; what it raises is logged and the next message goes on.
        """
        subscription = await self.subscribe(subject, queue=queue, cb=_unused)
        self._listeners[subscription._id] = _guarded(listener)  # noqa: SLF001 - the client's key for a subscription
        return subscription

    async def unlisten(self, subscription: Subscription) -> None:
        """End what `listen` began; a lost connection has ended it already."""
        self._listeners.pop(subscription._id, None)  # noqa: SLF001 - the client's key for a subscription
        if not self.is_closed:
            await subscription.unsubscribe()

    def send(self, subject: str, payload: bytes, reply: str = "", headers: bytes = b"") -> None:
        """Publish without waiting; everything sent in one turn of the loop is written at once.

        Raises:
            nats.errors.ConnectionClosedError: the client is closed.
            nats.errors.MaxPayloadError: larger than the server takes.
            nats.errors.OutboundBufferLimitError: the server is away or slow and the buffer is full.
        """
        if self.is_closed:
            raise errors.ConnectionClosedError
        size = len(payload) + len(headers)
        if size > self._max_payload:
            raise errors.MaxPayloadError
        if self._pending_data_size + size > self._max_pending_size:
            raise errors.OutboundBufferLimitError
        if headers:
            line = f"HPUB {subject} {reply} {len(headers)} {size}\r\n".encode()
            self._pending.append(b"".join((line, headers, payload, b"\r\n")))
        else:
            self._pending.append(b"".join((f"PUB {subject} {reply} {size}\r\n".encode(), payload, b"\r\n")))
        self._pending_data_size += size
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._write_out)

    async def flush(self, timeout: int = 10) -> None:
        """Wait until the server has taken all that was sent and subscribed before.

        nats-py writes its PING ahead of what is still pending, so its answer alone would say nothing of that.

        Raises:
            nats.errors.FlushTimeoutError, nats.errors.ConnectionClosedError: the server is away.
        """
        self._write_out()
        await super().flush(timeout)

    def ask(self, subject: str, payload: bytes, on_reply: OnReply, timeout_s: float, headers: bytes = b"") -> None:
        """Request/reply by callback: `on_reply` runs exactly once, with a payload or, after the time-out, None.

        "No responders" comes as an empty payload with its header.
        """
        token = b"%d" % next(self._tokens)
        self.send(subject, payload, f"{self._ask_prefix}{token.decode()}", headers)
        timer = asyncio.get_running_loop().call_later(timeout_s, self._on_ask_timeout, token)
        self._asked[token] = (on_reply, timer)

    async def call(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Request/reply for code that can wait.

        Raises:
            TimeoutError: no reply in time.
            nats.errors.NoRespondersError: nobody listens.
            nats.errors.Error: the message could not be sent.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def settle(reply: bytes | None, headers: bytes | None) -> None:
            if future.done():
                return
            if reply is None:
                future.set_exception(TimeoutError(f"no reply on {subject} within {timeout_s} s"))
            elif no_responders(headers):
                future.set_exception(errors.NoRespondersError(subject))
            else:
                future.set_result(reply)

        self.ask(subject, payload, settle, timeout_s)
        return await future

    def _on_reply(self, subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        asked = self._asked.pop(subject[len(self._ask_prefix) :], None)
        if asked is not None:
            on_reply, timer = asked
            timer.cancel()
            on_reply(payload, headers)

    def _on_ask_timeout(self, token: bytes) -> None:
        asked = self._asked.pop(token, None)
        if asked is not None:
            asked[0](None, None)

    async def _reconnected(self) -> None:
        _log.info("nats reconnected")
        for react in self._after_reconnect:
            react()

    def _write_out(self) -> None:
        self._flush_due = False
        if not self._pending or not self.is_connected or self._transport is None:
            return  # nats-py writes what is pending once it has reconnected
        self._transport.writelines(self._pending)
        self._pending = []
        self._pending_data_size = 0

    async def _connect_to_server(self, s: Srv) -> None:
        if not self._transport and s.uri.scheme in _TCP:
            self._transport = DirectTransport(self._wire)
        await super()._connect_to_server(s)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """A message that nats-py's parser took apart, since it came in between others."""
        listener = self._listeners.get(sid)
        if listener is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            listener(subject, reply, data, headers)


def _guarded(listener: Listener) -> Listener:
    """A listener whose exceptions are logged: one bad message must not end the read loop."""

    def guarded(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            listener(subject, reply, data, headers)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("listener failed", subject=subject.decode(errors="replace"))

    return guarded


@dataclass(slots=True)
class StandingPull:
    """A pull request that always stands: messages of a durable consumer come one by one as they are stored.

    At most `batch` messages are asked for at a time: the rest is asked for again when half of them have come, when a
    request expires, and after a reconnect.
    """

    bus: Bus
    stream: str
    durable: str
    on_message: Callable[[str, bytes, bytes], None]
    """subject, ack subject, payload."""
    batch: int = 512
    expires_s: float = 20.0
    _open: int = 0
    _inbox: str = ""
    _timer: asyncio.TimerHandle | None = None
    _running: bool = False

    async def start(self, inbox_prefix: str) -> None:
        """Subscribe once and ask for the first batch."""
        self._inbox = f"{inbox_prefix}.pull"
        await self.bus.listen(self._inbox, self._arrived)
        self._running = True
        self.bus.after_reconnect(self._request_anew)
        self._request()

    def stop(self) -> None:
        """Ask for no more; what has come stays un-acked until it is acked."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()

    def ack(self, ack_subject: bytes) -> None:
        """Acknowledge one message; its effect is committed."""
        self.bus.send(ack_subject.decode(), b"+ACK")

    def nak(self, ack_subject: bytes, delay_s: float) -> None:
        """Ask for redelivery after a delay."""
        self.bus.send(ack_subject.decode(), b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    def term(self, ack_subject: bytes) -> None:
        """Never deliver this message again; it has been parked."""
        self.bus.send(ack_subject.decode(), b"+TERM")

    def _request(self) -> None:
        """Ask for as many messages as make up a batch with those that are asked for already."""
        missing = self.batch - self._open
        if not self._running or missing <= 0:
            return
        body = b'{"batch": %d, "expires": %d}' % (missing, int(self.expires_s * 1e9))
        try:
            self.bus.send(f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}", body, self._inbox)
        except errors.Error as error:
            _log.warning("pull request not sent", stream=self.stream, error=type(error).__name__)
        else:
            self._open += missing
        self._ask_anew_in(self.expires_s + 1)

    def _request_anew(self) -> None:
        """Nothing is known of earlier requests: the server was away, or has not said that they expired."""
        self._open = 0
        self._request()

    def _ask_anew_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._request_anew)

    def _arrived(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and not reply:
            self._status(headers)
            return
        self._open -= 1
        if self._open <= self.batch // 2:
            self._request()
        self.on_message(subject.decode(), reply, payload)

    def _status(self, headers: bytes) -> None:
        """408: a request has expired, with so many messages left. All else says that the consumer is not there now."""
        if headers.startswith(_EXPIRED):
            _, _, rest = headers.partition(_LEFT)
            self._open = max(0, self._open - int(rest.partition(b"\r\n")[0] or 0))
            self._request()
        else:
            self._ask_anew_in(0.5)


async def opened(url: str, *, name: str, inbox_prefix: str) -> Bus:
    """A connected bus; waits for a server that is still starting.

    Raises:
        TimeoutError: no server within 30 s.
    """
    async with asyncio.timeout(30):
        while True:
            bus = Bus()
            try:
                await bus.open(url, name=name, inbox_prefix=inbox_prefix)
            except (OSError, errors.Error) as error:
                _log.info("waiting for nats", error=type(error).__name__)
                await asyncio.sleep(0.2)
            else:
                return bus


async def _unused(_message: Any) -> None:
    """The callback that `subscribe` asks for; `_process_msg` finds the listener first."""


async def _report_error(error: Exception) -> None:
    _log.error("nats error", error=type(error).__name__, detail=str(error)[:300])


async def _report_disconnect() -> None:
    _log.warning("nats disconnected")
