"""Changes of identities and of the catalogue: heard at once, and noticed when the message was missed.

A change is published on its `changed` subject and its revision written to the bucket `hub_revisions`; each gateway
listens to the first and looks at the second twice a second, so that a lost message delays nothing by more than that.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue
from pydantic import ValidationError

from contracts import streams, subjects
from contracts.rpc.catalog import CatalogChanged
from contracts.rpc.identity import IdentityChanged
from runtime.bus import Bus

_log = structlog.get_logger("revisions")
IDENTITY: Final = "identity"
CATALOG: Final = "catalog"
_POLL_S: Final = 0.5
_BUCKET_S: Final = 2.0


class IdentityCache(Protocol):
    """What must hear of changed identities."""

    def changed(self, key_ids: Sequence[str], revision: int) -> None:
        """These keys changed, or any when the list is empty."""

    def seen(self, revision: int, written: int) -> None:
        """The revision in the bucket, and the bucket's number of that entry."""


class Revisions:
    """Hears and announces changes.

    Args:
        bus: the process' connection.
        identities: told of every change of keys and users.
        catalog_changed: told of every revision of the catalogue.
    """

    def __init__(self, bus: Bus, identities: IdentityCache, catalog_changed: Callable[[int], None]) -> None:
        self._bus = bus
        self._js = bus.jetstream(timeout=_BUCKET_S)
        self._identities = identities
        self._catalog_changed = catalog_changed
        self._bucket: KeyValue | None = None
        self._away = False
        self._unannounced: int | None = None

    async def listen(self) -> None:
        """Subscribe to both subjects."""
        await self._bus.listen(subjects.IDENTITY_CHANGED, self._on_identity)
        await self._bus.listen(subjects.CATALOG_CHANGED, self._on_catalog)

    async def poll(self, every_s: float = _POLL_S) -> None:
        """Look at the bucket again and again, until cancelled; it may be away for any time."""
        while True:
            try:
                await self._announce_again()
                identity, catalog = await self._read(IDENTITY), await self._read(CATALOG)
            except (NatsError, TimeoutError) as error:
                if not self._away:
                    _log.warning("revisions not read", error=type(error).__name__)
                self._away = True
                self._bucket = None
            else:
                self._away = False
                if identity is not None:
                    self._identities.seen(*identity)
                if catalog is not None:
                    self._catalog_changed(catalog[0])
            await asyncio.sleep(every_s)

    async def announce(self, key_ids: Sequence[str], revision: int) -> None:
        """Tell every gateway that keys changed; ours first. The change is committed already.

        While the bus is away the others learn of it once it is back; a process that dies before leaves it to the
        expiry of their entries.
        """
        self._identities.changed(key_ids, revision)
        try:
            await self._tell(key_ids, revision)
        except (NatsError, TimeoutError) as error:
            _log.warning("change of keys not announced yet", revision=revision, error=type(error).__name__)
            self._bucket = None
            self._unannounced = max(revision, self._unannounced or 0)

    async def _announce_again(self) -> None:
        if self._unannounced is not None:
            revision = self._unannounced
            await self._tell((), revision)
            if self._unannounced == revision:
                self._unannounced = None

    async def _tell(self, key_ids: Sequence[str], revision: int) -> None:
        message = IdentityChanged(key_ids=tuple(key_ids), revision=revision)
        self._bus.send(subjects.IDENTITY_CHANGED, message.model_dump_json().encode())
        await (await self._open()).put(IDENTITY, b"%d" % revision)

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._js.key_value(streams.REVISIONS.name)
        return self._bucket

    async def _read(self, key: str) -> tuple[int, int] | None:
        """A revision and the bucket's number of its entry."""
        try:
            entry = await (await self._open()).get(key)
        except KeyNotFoundError:
            return None
        value = entry.value or b""
        if not value.isdigit():
            _log.error("revision is no number", key=key)
            return None
        return int(value), entry.revision or 0

    def _on_identity(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        try:
            message = IdentityChanged.model_validate_json(payload)
        except ValidationError:
            _log.error("identity.changed cannot be read")
            return
        self._identities.changed(message.key_ids, message.revision)

    def _on_catalog(self, _subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        try:
            message = CatalogChanged.model_validate_json(payload)
        except ValidationError:
            _log.error("catalog.changed cannot be read")
            return
        self._catalog_changed(message.revision)
