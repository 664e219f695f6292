"""Documents that name things which exist, and codes that tests know."""

import json
import re
from pathlib import Path

import pytest

from contracts.errors import ErrorCode
from hub_local.commands.app import _COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "docs/operate.md"]
PACKAGES = [*ROOT.glob("libs/*/src"), *ROOT.glob("services/*/src"), *ROOT.glob("deploy/*/src")]
PLACES = [ROOT, *PACKAGES, *(package for source in PACKAGES for package in source.iterdir() if package.is_dir())]
RAISED_NOWHERE_YET = {ErrorCode.PAYLOAD_TOO_LARGE, ErrorCode.RATE_LIMITED}
"""Codes that no test expects. It may only shrink."""


def named_files(text: str) -> list[str]:
    """What stands in backticks and looks like a file or folder of ours: `a/b.py`, `settle.py`, `docs/`."""
    quoted = re.findall(r"`([A-Za-z_.][\w./-]*)`", text)
    named = [name for name in quoted if "NNNN" not in name]
    return [name for name in named if name.endswith((".py", ".sql", ".md", ".json", ".toml", ".tsv", "/"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_only_files_that_exist(document: str) -> None:
    names = named_files((ROOT / document).read_text("utf-8"))
    gone = [name for name in names if not any((place / name).exists() for place in PLACES)]
    assert gone == []


def test_architecture_is_a_map_with_places_on_it() -> None:
    assert len(named_files((ROOT / "ARCHITECTURE.md").read_text("utf-8"))) >= 25


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_documented(code: ErrorCode) -> None:
    assert f"| `{code}` |" in (ROOT / "docs" / "errors.md").read_text("utf-8")


def _test_texts() -> str:
    """All tests that may show a code: those that do not go through the whole list."""
    files = [
        path for folder in ("services", "deploy", "libs/runtime", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    chosen = [
        path
        for path in files
        if "tests" in (parts := path.relative_to(ROOT).parts) and not {"tidy", "bench"}.intersection(parts)
    ]
    return "\n".join(path.read_text("utf-8") for path in chosen)


def test_every_error_code_is_expected_by_some_test() -> None:
    texts = _test_texts()
    unknown = {
        code for code in ErrorCode if not re.search(rf"ErrorCode\.{code.name}\b|[\"'`]{code.value}[\"'`]", texts)
    }
    assert unknown - RAISED_NOWHERE_YET == set()


@pytest.mark.parametrize("document", ["README.md", "docs/operate.md"])
def test_commands_and_settings_that_people_read_of_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named_commands = set(re.findall(r"`hub ([a-z]+)(?: ([a-z\\|]+))?", text))
    unknown = {
        f"hub {group} {command}"
        for group, names in named_commands
        for command in names.split("\\|")
        if (command not in {"", *_COMMANDS[group]} if group in _COMMANDS else group not in _COMMANDS[""])
    }
    assert len(named_commands) > 10
    assert unknown == set()
    settings = (ROOT / "docs" / "settings.md").read_text("utf-8")
    named = set(re.findall(r"\bHUB_[A-Z][A-Z0-9_]*[A-Z0-9]\b", text))
    assert {name for name in named if f"`{name}" not in settings} == set()


def test_metrics_and_duties_of_the_operators_guide_exist() -> None:
    text = (ROOT / "docs" / "operate.md").read_text("utf-8")
    code = "\n".join(file.read_text("utf-8") for package in PACKAGES for file in package.rglob("*.py"))
    metrics = set(re.findall(r"`(hub_[a-z_]+)", text))
    assert len(metrics) >= 10
    assert {name for name in metrics if f'"{name}"' not in code} == set()
    duties = set(re.findall(r"^\| `([a-z-]+)` \| `HUB_", text, re.MULTILINE))
    files = (ROOT / "services" / "janitor" / "src" / "janitor" / "duties").glob("*.py")
    texts = [file.read_text("utf-8") for file in files]
    assert duties == {name for text in texts for name in re.findall(r'^NAME: Final = "(.+)"', text, re.MULTILINE)}


def test_every_setting_that_code_names_is_documented() -> None:
    table = (ROOT / "docs" / "settings.md").read_text("utf-8")
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    named = {name for file in files for name in re.findall(r"\bHUB_[A-Z][A-Z0-9_]*[A-Z0-9]\b", file.read_text("utf-8"))}
    groups = {name for name in named if f"`{name}__<NAME>__" in table}
    assert {name for name in named - groups if f"`{name}`" not in table} == set()


OPEN = {
    "/healthz",
    *(f"/api/{name}/{models}" for name in ("ai-providers", "ai") for models in ("models", "chat/models")),
}
"""Paths for anybody: whether the hub is up, and what models cost."""


def test_every_path_has_a_role() -> None:
    document = json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8"))
    for path, item in document["paths"].items():
        for operation in item.values():
            (tag,) = operation["tags"]
            is_open = not tag.startswith("role ") and tag != "signed"
            assert not is_open or path in OPEN, f"{path} is open to everybody"


def test_no_document_has_a_line_for_a_feature_that_is_not_there() -> None:
    parity = (ROOT / "docs" / "parity.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|", parity, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 133))
