"""Each service can do what it must and nothing else, asked of the real server."""

import asyncio

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from rig.fixtures import Database
from rig.servers import DockerServers, EmbeddedServers
from rig.waiting import until

from contracts import subjects
from contracts.permissions import GATEWAY, JANITOR, METERING, OPERATOR, PROVISIONER, ROUTER, USERS
from contracts.subjects import CallKind
from hub_local.migrate import OWNERS

Servers = EmbeddedServers | DockerServers
CHAT = CallKind.CHAT

FORBIDDEN_TO_PUBLISH = [
    (GATEWAY, subjects.calls_completed(CHAT)),
    (GATEWAY, subjects.usage_recorded(CHAT)),
    (GATEWAY, subjects.inbox_settled("gateway", "gateway-1")),
    (GATEWAY, "$KV.hub_revisions.catalog"),
    (GATEWAY, "$JS.API.STREAM.PURGE.CALLS"),
    (ROUTER, subjects.usage_recorded(CHAT)),
    (ROUTER, subjects.calls_requested(CHAT)),
    (ROUTER, subjects.dispatch()),
    (ROUTER, "$JS.ACK.CALLS.metering-settle.1.1.1.1.0"),
    (ROUTER, "$JS.API.CONSUMER.MSG.NEXT.CALLS.metering-settle"),
    (METERING, subjects.calls_completed(CHAT)),
    (METERING, subjects.dispatch()),
    (METERING, "$JS.API.STREAM.DELETE.CALLS"),
    (METERING, "$JS.API.STREAM.MSG.DELETE.USAGE"),
    (METERING, "$KV.hub_duty_runs.closing"),
    (JANITOR, subjects.calls_completed(CHAT)),
    (JANITOR, subjects.inbox_frames("gateway-1")),
    (JANITOR, subjects.rpc("gateway", "key_create")),
    (OPERATOR, subjects.calls_completed(CHAT)),
    (OPERATOR, subjects.calls_failed(CHAT)),
    (OPERATOR, "$JS.API.STREAM.DELETE.USAGE"),
    (OPERATOR, "$KV.hub_duty_runs.closing"),
    (PROVISIONER, subjects.calls_completed(CHAT)),
]
FORBIDDEN_TO_READ = [
    (GATEWAY, "_INBOX.metering.>"),
    (GATEWAY, "_INBOX.>"),
    (GATEWAY, subjects.dispatch()),
    (ROUTER, "_INBOX.gateway.>"),
    (ROUTER, subjects.rpc("metering", "reserve")),
    (METERING, subjects.dispatch()),
    (JANITOR, "hub.v1.>"),
    (OPERATOR, subjects.dispatch()),
    (OPERATOR, "_INBOX.gateway.>"),
]


class Refusals:
    """What the server told a connection about its rights."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def told(self, what: str) -> None:
        """Wait for a refusal."""

        async def look() -> bool:
            return any(f"permissions violation for {what}" in text for text in self.texts)

        await until(look, within_s=5, what=f"the server refuses this {what}")

    async def note(self, error: Exception) -> None:
        self.texts.append(str(error).lower())


async def connected(servers: Servers, user: str) -> tuple[Client, Refusals]:
    refusals = Refusals()
    client = await nats.connect(
        servers.credentials.nats_url(user, servers.ports.nats),
        inbox_prefix=f"_INBOX.{user}.test".encode(),
        error_cb=refusals.note,
    )
    return client, refusals


@pytest.mark.parametrize(("user", "subject"), FORBIDDEN_TO_PUBLISH)
async def test_a_service_cannot_publish_what_is_not_its_own(infra: Servers, user: str, subject: str) -> None:
    client, refusals = await connected(infra, user)
    await client.publish(subject, b"{}")
    await client.flush()
    await refusals.told("publish")
    await client.close()


@pytest.mark.parametrize(("user", "subject"), FORBIDDEN_TO_READ)
async def test_a_service_cannot_read_what_is_not_its_own(infra: Servers, user: str, subject: str) -> None:
    client, refusals = await connected(infra, user)

    async def ignore(_message: object) -> None: ...

    await client.subscribe(subject, cb=ignore)
    await client.flush()
    await refusals.told("subscription")
    await client.close()


ALLOWED_TO_PUBLISH = [
    (GATEWAY, subjects.dispatch()),
    (GATEWAY, subjects.cancel("provider-router-1")),
    (GATEWAY, subjects.rpc("metering", "reserve")),
    (GATEWAY, subjects.rpc("provider-router", "catalog_snapshot")),
    (GATEWAY, subjects.IDENTITY_CHANGED),
    (ROUTER, subjects.inbox_frames("gateway-1")),
    (ROUTER, subjects.inbox_alive("gateway-1")),
    (ROUTER, subjects.CATALOG_CHANGED),
    (ROUTER, subjects.rpc("metering", "renew")),
    (METERING, subjects.inbox_settled("gateway", "gateway-1")),
    (METERING, subjects.inbox_settled("provider-router", "provider-router-1")),
    (METERING, "$JS.API.CONSUMER.MSG.NEXT.CALLS.metering-settle"),
    (METERING, "$JS.ACK.CALLS.metering-settle.1.1.1.1.0"),
    (JANITOR, subjects.rpc("metering", "stale")),
    (OPERATOR, subjects.rpc("gateway", "key_create")),
    (OPERATOR, subjects.rpc("metering", "balance")),
]


@pytest.mark.parametrize(("user", "subject"), ALLOWED_TO_PUBLISH)
async def test_a_service_can_publish_what_it_must(infra: Servers, user: str, subject: str) -> None:
    client, refusals = await connected(infra, user)
    await client.publish(subject, b"{}")
    await client.flush()
    await client.close()
    assert refusals.texts == []


@pytest.mark.parametrize(
    ("user", "bucket", "key"),
    [
        (GATEWAY, "hub_revisions", "identity"),
        (ROUTER, "hub_revisions", "catalog"),
        (ROUTER, "hub_provider_health", "openai.default"),
        (JANITOR, "hub_duty_leases", "stale_calls"),
    ],
)
async def test_buckets_can_be_written_read_and_watched(infra: Servers, user: str, bucket: str, key: str) -> None:
    client, refusals = await connected(infra, user)
    store = await client.jetstream().key_value(bucket)
    revision = await store.put(key, b"1")
    assert (await store.get(key)).value == b"1"
    await store.update(key, b"2", last=revision)
    watch = await store.watch(key)
    entry = await watch.updates(timeout=2)  # type: ignore[no-untyped-call]
    assert entry is not None
    assert entry.value == b"2"
    await watch.stop()  # type: ignore[no-untyped-call]
    await store.delete(key)
    await client.close()
    assert refusals.texts == []


@pytest.mark.parametrize(
    ("user", "subject", "stream"),
    [
        (GATEWAY, subjects.calls_requested(CHAT), "CALLS"),
        (GATEWAY, subjects.calls_failed(CHAT), "CALLS"),
        (ROUTER, subjects.calls_completed(CHAT), "CALLS"),
        (ROUTER, subjects.calls_failed(CHAT), "CALLS"),
        (JANITOR, subjects.calls_failed(CHAT), "CALLS"),
        (METERING, subjects.usage_recorded(CHAT), "USAGE"),
    ],
)
async def test_facts_are_stored_and_acknowledged(own_infra: Servers, user: str, subject: str, stream: str) -> None:
    client, refusals = await connected(own_infra, user)
    stored = await client.jetstream().publish(subject, b"{}", headers={"Nats-Msg-Id": "one"})
    assert (stored.stream, stored.seq) == (stream, 1)
    await client.close()
    assert refusals.texts == []


@pytest.mark.parametrize("asked", [GATEWAY, ROUTER, METERING])
async def test_answers_reach_whoever_may_ask(infra: Servers, asked: str) -> None:
    server, refused = await connected(infra, asked)
    subject = subjects.rpc(asked, "test_only")

    async def answer(message: Msg) -> None:
        await message.respond(b"yes")

    await server.subscribe(subject, queue=asked, cb=answer)
    await server.flush()
    for user in (OPERATOR, GATEWAY, ROUTER, JANITOR):
        if asked == user or not any(_covers(allowed, subject) for allowed in USERS[user].publish):
            continue
        client, _ = await connected(infra, user)
        assert (await client.request(subject, b"?", timeout=2)).data == b"yes", user
        await client.close()
    await server.close()
    assert refused.texts == []


async def test_a_usage_subscriber_reads_the_stream_as_operator(own_infra: Servers) -> None:
    metering, _ = await connected(own_infra, METERING)
    await metering.jetstream().publish(subjects.usage_recorded(CHAT), b"{}")
    operator, refusals = await connected(own_infra, OPERATOR)
    subscription = await operator.jetstream().subscribe(
        subjects.usage_recorded(CHAT), stream="USAGE", ordered_consumer=True
    )
    assert (await subscription.next_msg(timeout=2)).data == b"{}"
    await asyncio.gather(operator.close(), metering.close())
    assert refusals.texts == []


@pytest.mark.parametrize("role", sorted(OWNERS))
async def test_a_database_role_sees_its_own_schema_only(database: Database, role: str) -> None:
    connection = await asyncpg.connect(database.dsns[role])
    try:
        for schema in OWNERS.values():
            may = await connection.fetchval("select has_schema_privilege($1, 'usage')", schema)
            assert may is (schema == OWNERS[role]), schema
        assert not await connection.fetchval(
            "select rolsuper or rolcreatedb or rolcreaterole from pg_roles where rolname = $1", role
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("create table public.mine (n int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("select * from public.hub_migration")
    finally:
        await connection.close()


def _covers(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    return len(wanted) == len(given) and all(w in {"*", g} for w, g in zip(wanted, given, strict=True))
