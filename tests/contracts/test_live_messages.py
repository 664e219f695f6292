"""What really travels between the services is what the AsyncAPI document says."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
from rig.hub import Hub
from rig.messages import validate, validate_reply
from rig.waiting import until

from contracts import permissions, subjects
from contracts.ids import new_process_id
from contracts.permissions import Permissions
from contracts.rpc import catalog, identity, metering, model_calls, rate_changes
from contracts.rpc.envelope import Empty
from runtime import rpc
from runtime.bus import Bus, opened

TAP = "tap"
"""A NATS user of this test, who hears everything."""
OF_THE_SERVER = ("$", "_INBOX.tap")
EXPECTED = {
    "calls.completed",
    "calls.failed",
    "calls.requested",
    "cancel",
    "dispatch",
    "identity.changed",
    "catalog.changed",
    "frames",
    "inbox.frames",
    "inbox.settled",
    "parts",
    "rpc.gateway.key_create",
    "rpc.gateway.key_create.reply",
    "rpc.gateway.key_list",
    "rpc.gateway.key_list.reply",
    "rpc.gateway.key_revoke",
    "rpc.gateway.key_revoke.reply",
    "rpc.metering.balance",
    "rpc.metering.balance.reply",
    "rpc.metering.call_get",
    "rpc.metering.call_get.reply",
    "rpc.metering.call_outcomes",
    "rpc.metering.call_outcomes.reply",
    "rpc.metering.call_list",
    "rpc.metering.call_list.reply",
    "rpc.metering.reserve",
    "rpc.metering.reserve.reply",
    "rpc.metering.stale",
    "rpc.metering.stale.reply",
    "rpc.provider-router.catalog_snapshot",
    "rpc.provider-router.catalog_snapshot.reply",
    "rpc.provider-router.rates_list",
    "rpc.provider-router.rates_list.reply",
    "rpc.provider-router.rates_set",
    "rpc.provider-router.rates_set.reply",
    "usage.recorded",
}

Heard = list[tuple[str, str, bytes]]
"""Subject, reply subject, payload."""


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch, start_hub: Callable[..., Awaitable[Hub]]) -> Hub:
    monkeypatch.setitem(permissions.USERS, TAP, Permissions(publish=(f"_INBOX.{TAP}.>",), subscribe=(">",)))
    return await start_hub()


@pytest.fixture
async def heard(hub: Hub) -> AsyncIterator[Heard]:
    """Everything that travels from now on."""
    process = new_process_id(TAP)
    url = hub.servers.credentials.nats_url(TAP, hub.servers.ports.nats)
    bus = await opened(url, name=process, inbox_prefix=subjects.inbox_prefix(TAP, process))
    messages: Heard = []

    def keep(subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        messages.append((subject.decode(), reply.decode(), payload))

    await bus.listen(">", keep)
    await bus.flush()
    yield messages
    await bus.close()


async def test_every_message_of_a_working_hub_is_documented(hub: Hub, heard: Heard) -> None:
    async with httpx2.AsyncClient(base_url=hub.url, headers=hub.headers, timeout=30) as client:
        await _calls(client)
    operator = await hub.connect(permissions.OPERATOR)
    await _questions(operator)
    await operator.close()

    async def all_seen() -> bool:
        return not EXPECTED - _checked(heard)

    try:
        await until(all_seen, within_s=20)
    except AssertionError:
        pytest.fail(f"never heard: {sorted(EXPECTED - _checked(heard))}")


def _checked(heard: Heard) -> set[str]:
    """Names of the channels of all messages; each message was valid."""
    questions: dict[str, str] = {}
    channels = set()
    for subject, reply, payload in heard:
        if subject.startswith(OF_THE_SERVER):
            continue
        if subject in questions:
            channels.add(validate_reply(questions[subject], payload))
        elif not _is_answer_of_the_server(subject):
            channels.add(validate(subject, payload))
        if reply and ".rpc." in subject:
            questions[reply] = subject
    return channels


def _is_answer_of_the_server(subject: str) -> bool:
    """Whether a subject is an inbox for JetStream's answers: anything in an inbox that is no channel."""
    inboxes = (".frames", ".settled", ".alive", ".parts", ".undispatched.")
    return subject.startswith("_INBOX.") and not any(name in subject for name in inboxes)


async def _calls(client: httpx2.AsyncClient) -> None:
    """A whole answer, a stream, an answer given twice, a large body, a failure, and a client that leaves."""
    question: dict[str, Any] = {"model": "demo/echo", "messages": [{"role": "user", "content": "one two three"}]}
    whole = await client.post("/v1/chat/completions", json=question)
    assert whole.status_code == 200, whole.text
    call_id = whole.json()["usage"]["call_id"]
    assert (await client.get(f"/api/v2/calls/{call_id}")).status_code == 200
    assert (await client.get("/api/user/info")).status_code == 200
    streamed = await client.post("/v1/chat/completions", json={**question, "stream": True})
    assert streamed.text.rstrip().endswith("data: [DONE]")
    for _ in range(2):
        keyed = await client.post("/v1/chat/completions", json=question, headers={"idempotency-key": "live"})
        assert keyed.status_code == 200, keyed.text
    picture = base64.b64encode(bytes(5 * 2**20)).decode()
    parts = [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    large = {"model": "demo/echo", "max_tokens": 5, "messages": [{"role": "user", "content": parts}]}
    with_picture = await client.post("/v1/chat/completions", json=large)
    assert with_picture.status_code == 200, with_picture.text
    failing = await client.post("/v1/chat/completions", json={**question, "demo": {"fail_at": 0}})
    assert failing.status_code >= 500, failing.text
    slow = {**question, "stream": True, "demo": {"delay_ms": 200, "chunks": 100}}
    async with client.stream("POST", "/v1/chat/completions", json=slow) as leaving:
        await anext(leaving.aiter_bytes())


async def _questions(operator: Bus) -> None:
    """What the `hub` command asks."""
    key = await rpc.ask(operator, identity.SERVICE, identity.KEY_CREATE, identity.KeyCreate(), identity.KeyCreated)
    await rpc.ask(operator, identity.SERVICE, identity.KEY_LIST, identity.KeyList(), identity.KeyPage)
    revoke = identity.KeyRevoke(key_id=key.key_id)
    await rpc.ask(operator, identity.SERVICE, identity.KEY_REVOKE, revoke, Empty)
    await rpc.ask(operator, metering.SERVICE, model_calls.CALL_LIST, model_calls.CallList(), model_calls.CallPage)
    await rpc.ask(operator, catalog.SERVICE, catalog.SNAPSHOT, catalog.SnapshotGet(), catalog.Snapshot)
    rates = rate_changes.RatesSet(pattern="acme/*", input="0.000001", output="0.000002")
    await rpc.ask(operator, catalog.SERVICE, rate_changes.RATES_SET, rates, catalog.RateView)
    await rpc.ask(operator, catalog.SERVICE, rate_changes.RATES_LIST, rate_changes.RatesList(), rate_changes.RatesPage)
