"""Messages stay readable: by last release's readers, and those of last release's writers by us."""

import copy
from typing import Any

import pytest
from rig import snapshots

from contracts.catalogue import CHANNELS

UPDATE = "run `PYTHONPATH=tests python -m rig.snapshots --update` and commit the snapshot"
CURRENT = snapshots.current()
COMMITTED = snapshots.committed()


@pytest.mark.parametrize("name", COMMITTED)
def test_published_message_changes_only_compatibly(name: str) -> None:
    assert name in CURRENT, f"{name} is no longer in the catalogue; a published channel is replaced under v2"
    assert snapshots.breaks(COMMITTED[name], CURRENT[name]) == []


@pytest.mark.parametrize("name", CURRENT)
def test_every_channel_has_its_snapshot_and_it_is_todays(name: str) -> None:
    assert name in COMMITTED, UPDATE
    assert COMMITTED[name] == CURRENT[name], UPDATE


def test_snapshot_has_no_words_but_keeps_fields_that_are_called_like_them() -> None:
    schema = {"title": "T", "properties": {"title": {"type": "string", "description": "Words."}}, "default": 1}
    assert snapshots._bare(schema) == {"properties": {"title": {"type": "string"}}, "default": 1}


def test_channels_have_names_and_subjects_of_their_own() -> None:
    assert len({channel.name for channel in CHANNELS}) == len(CHANNELS)
    assert len({channel.subject for channel in CHANNELS}) == len(CHANNELS)


OLD: dict[str, Any] = {
    "subject": "hub.v1.x",
    "content": {
        "$ref": "#/$defs/Fact",
        "$defs": {
            "Fact": {
                "type": "object",
                "properties": {
                    "call_id": {"type": "string"},
                    "count": {"type": "integer", "minimum": 0},
                    "kind": {"enum": ["a", "b"]},
                    "parts": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
                },
                "required": ["call_id", "count"],
            }
        },
    },
}


def changed(*path: str | int, to: Any = None) -> dict[str, Any]:
    """The schema with one thing set, or removed."""
    new = copy.deepcopy(OLD)
    place: Any = new
    for step in path[:-1]:
        place = place[step]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return new


FACT = ("content", "$defs", "Fact")


@pytest.mark.parametrize(
    "new",
    [
        changed(*FACT, "properties", "kind"),
        changed(*FACT, "properties", "count", "type", to="string"),
        changed(*FACT, "properties", "count", "minimum", to=1),
        changed(*FACT, "properties", "count", "maximum", to=9),
        changed(*FACT, "properties", "count", "default", to=1),
        changed(*FACT, "properties", "kind", "enum", to=["a"]),
        changed(*FACT, "properties", "parts", "items", "anyOf", to=[{"type": "string"}]),
        changed(*FACT, "properties", "parts", "items", "anyOf", 1, "type", to="integer"),
        changed(*FACT, "required", to=["call_id", "count", "kind"]),
        changed(*FACT, "required", to=["call_id"]),
        changed(*FACT, "required"),
        changed("content", "$defs", "Fact"),
        changed("content", "$ref", to="#/$defs/Other"),
        changed("subject", to="hub.v1.y"),
    ],
)
def test_change_that_an_old_reader_or_writer_would_not_survive_is_found(new: dict[str, Any]) -> None:
    assert snapshots.breaks(OLD, new) != []


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        changed(*FACT, "properties", "mood", to={"type": "string"}),
        changed(*FACT, "properties", "kind", "enum", to=["a", "b", "c"]),
        changed("content", "$defs", "Mood", to={"type": "object"}),
    ],
)
def test_change_that_everybody_survives_is_allowed(new: dict[str, Any]) -> None:
    assert snapshots.breaks(OLD, new) == []
