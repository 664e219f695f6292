"""The AsyncAPI document covers every subject, and describes what really travels."""

import inspect
import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig.messages import DOCUMENT, UndocumentedError, channel_of, validate, validate_reply

from contracts import dispatch, events, frames, permissions, streams, subjects, usage
from contracts.catalogue import CHANNELS, SUBSCRIBERS
from contracts.cloudevent import usage_event
from contracts.frames import FrameKind
from contracts.ids import new_call_id
from contracts.rpc import catalog, identity, metering

DOCUMENTED: dict[str, Any] = json.loads(DOCUMENT.read_text("utf-8"))
GATEWAY, ROUTER = "gateway-0123456789ab", "provider-router-0123456789ab"
SUBJECTS = {
    "rpc": [subjects.rpc("metering", "reserve")],
    "dispatch": [subjects.dispatch()],
    "cancel": [subjects.cancel(ROUTER)],
    "calls_requested": [subjects.calls_requested(kind) for kind in subjects.CallKind],
    "calls_completed": [subjects.calls_completed(kind) for kind in subjects.CallKind],
    "calls_failed": [subjects.calls_failed(kind) for kind in subjects.CallKind],
    "usage_recorded": [subjects.usage_recorded(kind) for kind in subjects.CallKind],
    "credit_notice": [subjects.credit_notice(level) for level in subjects.CreditLevel],
    "frames": [subjects.frames("01a21677-6af4-7450-8936-3da37e93466a")],
    "inbox_frames": [subjects.inbox_frames(GATEWAY)],
    "inbox_undispatched": [subjects.inbox_undispatched(GATEWAY, 7)],
    "inbox_alive": [subjects.inbox_alive(GATEWAY)],
    "inbox_parts": [subjects.inbox_parts(ROUTER)],
    "inbox_settled": [subjects.inbox_settled("gateway", GATEWAY), subjects.inbox_settled("provider-router", ROUTER)],
}
NO_CHANNEL = {"inbox_prefix"}
"""Functions that build only the beginning of a subject."""


def test_every_function_that_builds_a_subject_is_tried_here() -> None:
    functions = {
        name
        for name, value in vars(subjects).items()
        if inspect.isfunction(value) and value.__module__ == subjects.__name__
    }
    assert functions == SUBJECTS.keys() | NO_CHANNEL


@pytest.mark.parametrize("subject", [subject for built in SUBJECTS.values() for subject in built])
def test_every_subject_that_can_be_built_belongs_to_one_channel(subject: str) -> None:
    channel_of(subject)


@pytest.mark.parametrize("subject", [subjects.CATALOG_CHANGED, subjects.IDENTITY_CHANGED])
def test_subject_without_parameters_belongs_to_its_channel(subject: str) -> None:
    channel_of(subject)


@pytest.mark.parametrize("owner", [metering, catalog, identity])
def test_every_method_of_every_service_is_a_channel_with_its_reply(owner: Any) -> None:
    methods = [
        value for name, value in vars(owner).items() if name.isupper() and isinstance(value, str) and name != "SERVICE"
    ]
    assert methods
    for method in methods:
        name = channel_of(subjects.rpc(owner.SERVICE, method))
        assert f"{name}.reply" in DOCUMENTED["channels"]


def test_every_stream_keeps_what_the_catalogue_says_it_keeps() -> None:
    for stream in streams.STREAMS:
        kept = {channel.subject for channel in CHANNELS if channel.stream == stream.name}
        assert {subject[: subject.rindex(".")] for subject in kept} == {
            subject[: subject.rindex(".")] for subject in stream.subjects
        }


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
def test_who_sends_and_who_receives_may_do_so(channel: Any) -> None:
    for user in set(channel.senders) & permissions.USERS.keys():
        assert _covered(channel.subject, permissions.USERS[user].publish), f"{user} may not publish {channel.subject}"
    if not channel.stream:
        for user in set(channel.receivers) - {SUBSCRIBERS}:
            assert _covered(channel.subject, permissions.USERS[user].subscribe), (
                f"{user} may not hear {channel.subject}"
            )


def _covered(subject: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of NATS' patterns covers a subject; a parameter matches `*`, `>` and, for a service, its name."""
    tokens = subject.split(".")
    return any(_matches(tokens, pattern.split(".")) for pattern in patterns)


def _matches(tokens: list[str], pattern: list[str]) -> bool:
    for place, token in enumerate(pattern):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or (token not in {"*", tokens[place]} and tokens[place] != "{service}"):
            return False
    return len(tokens) == len(pattern)


def test_document_is_whole_every_reference_leads_somewhere() -> None:
    assert DOCUMENTED["asyncapi"] == "3.0.0"
    references = list(_references(DOCUMENTED))
    assert len(references) > 100
    for reference in references:
        place: Any = DOCUMENTED
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, reference
            place = place[step]


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


@pytest.mark.parametrize("name", DOCUMENTED["components"]["schemas"])
def test_every_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENTED["components"]["schemas"][name])


@pytest.mark.parametrize("name", DOCUMENTED["channels"])
def test_every_channel_says_what_it_is_for_and_what_its_parameters_are(name: str) -> None:
    channel = DOCUMENTED["channels"][name]
    assert channel["description"].endswith(".")
    address = channel["address"] or ""
    assert set(channel.get("parameters", {})) == {part.partition("}")[0] for part in address.split("{")[1:]}


TEXT = st.text(max_size=10)
STRUCTS = {
    subjects.calls_requested(subjects.CallKind.CHAT): events.CallRequested,
    subjects.calls_completed(subjects.CallKind.CHAT): events.CallCompleted,
    subjects.calls_failed(subjects.CallKind.CHAT): events.CallFailed,
    subjects.cancel(ROUTER): dispatch.Cancel,
    subjects.inbox_settled("gateway", GATEWAY): metering.SettledBatch,
    subjects.rpc("metering", metering.RESERVE): metering.ReserveBatch,
    subjects.rpc("metering", metering.EXTEND): metering.ExtendHold,
    subjects.rpc("metering", metering.RENEW): metering.RenewLeases,
}
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(usage.Rates, st.builds(usage.Rates, input=TEXT, output=TEXT))


@pytest.mark.parametrize("subject", STRUCTS)
def test_whatever_a_struct_can_carry_is_as_documented(subject: str) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(st.from_type(STRUCTS[subject]))
    def holds(message: msgspec.Struct) -> None:
        validate(subject, msgspec.json.encode(message))

    holds()


def test_usage_event_is_as_documented() -> None:
    data = events.UsageRecorded(
        call_id=new_call_id(), account="a", sequence=1, state="success", outcome="stop", credits="0.0000000000",
        kind="chat", model="m", provider="p", usage=usage.Usage(1, 2), rates={"input": "0"},
    )  # fmt: skip
    assert validate(subjects.usage_recorded(subjects.CallKind.CHAT), msgspec.json.encode(usage_event(data)))


def test_reply_is_the_value_or_the_problem() -> None:
    subject = subjects.rpc("metering", metering.BALANCE)
    balance = b'{"account":"a","granted":"1","spent":"0","held":"0","available":"1"}'
    validate_reply(subject, b'{"ok":%s}' % balance)
    validate_reply(subject, b'{"error":{"code":"not_found","message":"There is no such account."}}')
    for wrong in (balance, b"{}", b'{"ok":{}}', b'{"error":{"code":"no such code","message":""}}', b"nonsense"):
        with pytest.raises(UndocumentedError):
            validate_reply(subject, wrong)


def test_frames_and_dispatch_are_looked_into() -> None:
    accepted = frames.pack(FrameKind.ACCEPTED, 1, 0, msgspec.json.encode(frames.Accepted(ROUTER)))
    end = frames.pack(FrameKind.END, 1, 1, frames.end_payload(b"{}", None))
    validate(subjects.inbox_frames(GATEWAY), accepted + end)
    with pytest.raises(UndocumentedError):
        validate(subjects.inbox_frames(GATEWAY), frames.pack(FrameKind.ACCEPTED, 1, 0, b"{}"))
    with pytest.raises(UndocumentedError):
        validate(subjects.inbox_frames(GATEWAY), frames.pack(FrameKind.END, 1, 0, b""))
    header = dispatch.DispatchHeader(
        call_id=new_call_id(), epoch=1, number=1, gateway=GATEWAY, account="a", kind="chat", dialect="openai",
        stream=False, deadline_ms=1, candidates=(usage.Candidate("p", "m", usage.Rates()),), hold="0",
    )  # fmt: skip
    validate(subjects.dispatch(), dispatch.pack(header, b"not json, and none of our business"))
    validate(subjects.inbox_parts(ROUTER), dispatch.pack_part(header.call_id, 1, b"more"))


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("hub.v1.calls.cancelled.chat", b"{}"),
        ("hub.v1.calls.failed", b"{}"),
        ("hub.v1.calls.failed.chat.extra", b"{}"),
        (subjects.calls_failed(subjects.CallKind.CHAT), b"{}"),
        (subjects.CATALOG_CHANGED, b'{"revision":"one"}'),
        (subjects.inbox_undispatched(GATEWAY, 1), b"x"),
    ],
)
def test_undocumented_message_is_found(subject: str, payload: bytes) -> None:
    with pytest.raises(UndocumentedError):
        validate(subject, payload)
