"""What linters cannot hold: rules of the house that are about names, words and money."""

import ast
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")
    if name and (ROOT / name).is_file()
]  # fmt: skip
PARTS = ("libs", "services", "deploy")
SOURCES = [
    path
    for path in TRACKED
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PARTS and "src" in path.relative_to(ROOT).parts
]
METERING = ROOT / "services" / "metering" / "src" / "metering"
MONEY = [
    METERING / "pricing.py",
    METERING / "accounts.py",
    METERING / "settle.py",
    METERING / "events.py",
    METERING / "calls.py",
    METERING / "ledger" / "changes.py",
    METERING / "ledger" / "views.py",
    METERING / "ledger" / "statements.py",
    METERING / "sql" / "store.py",
    *(METERING / "payment_kit" / name for name in ("amounts.py", "events.py", "outbox.py", "grants.py")),
    ROOT / "libs" / "contracts" / "src" / "contracts" / "money.py",
]
EXPLAINED = [
    *(path for path in SOURCES if path.relative_to(ROOT).parts[0] == "libs"),
    *(path for path in SOURCES if "adapters" in path.parts),
    *(path for path in SOURCES if "payment_kit" in path.parts),
    METERING / "pricing.py",
    METERING / "settle.py",
    METERING / "reserve.py",
]


def of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """`file:line: text` of every line in which a pattern occurs."""
    found = re.compile(pattern)
    hits = []
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        hits += [
            f"{of(path)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if found.search(line)
        ]
    return hits


def test_the_scan_sees_the_whole_tree() -> None:
    assert len(SOURCES) > 50
    for path in MONEY:
        assert path.is_file(), f"{of(path)} is gone: name the module that has its money now"


def test_no_subject_is_spelt_outside_contracts() -> None:
    outside = [path for path in SOURCES if "contracts" not in path.parts]
    outside += [path for path in TRACKED if path.suffix == ".sql"]
    assert lines_with(r"hub\.v1\.", outside) == []


@pytest.mark.parametrize("path", MONEY, ids=of)
def test_no_float_where_money_is(path: Path) -> None:
    """Durations are floats of seconds; they are told by their names' last word, on the line where they stand."""
    text = path.read_text("utf-8").splitlines()
    for node in ast.walk(ast.parse("\n".join(text))):
        is_float = isinstance(node, ast.Name) and node.id == "float"
        is_float |= isinstance(node, ast.Constant) and isinstance(node.value, float)
        if is_float and not re.search(r"(?i)_s\b|timeout|delay", text[node.lineno - 1]):
            pytest.fail(f"{of(path)}:{node.lineno}: {text[node.lineno - 1].strip()}")


def test_metering_turns_nothing_into_a_float() -> None:
    calls = [
        f"{of(path)}:{node.lineno}"
        for path in SOURCES
        if path.is_relative_to(METERING)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float"
    ]
    assert calls == []
    queries = list(METERING.rglob("*.sql"))
    assert queries
    assert lines_with(r"(?i)(?<!_s )\b(float[48]?|double precision|real)\b", queries) == []


def test_nothing_is_marked_as_unfinished() -> None:
    words = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"))
    assert lines_with(rf"\b({words})\b", [path for path in TRACKED if path.suffix != ".lock"]) == []


def test_no_machine_is_named() -> None:
    paths = "|".join(("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]", "/Us" + "ers/", "/tm" + "p/w"))
    hosts = "|".join(
        ("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)", "index-" + "url", "extra-" + "index")
    )
    assert lines_with(f"({paths}|{hosts})", TRACKED) == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_names_no_host_and_hashes_everything(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    pinned = re.findall(r"^[a-z0-9][\w.\[\],-]*==\S+", text, re.MULTILINE)
    assert len(pinned) > 30
    assert text.count("--hash=sha256:") >= len(pinned)


def test_only_our_own_packages_put_code_into_every_start_of_python() -> None:
    ours = re.compile(r"(_editable_impl_|__editable__\.)aigne_hub_\w+\.pth|_virtualenv\.pth|distutils-precedence\.pth")
    strange = [path.name for path in Path(sysconfig.get_path("purelib")).glob("*.pth") if not ours.fullmatch(path.name)]
    assert strange == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=of)
def test_package_file_is_only_a_docstring(path: Path) -> None:
    body = ast.parse(path.read_text("utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_no_module_is_named_after_nothing() -> None:
    nothing = {"utils", "util", "common", "helpers", "helper", "base", "manager", "managers", "misc"}
    assert [of(path) for path in SOURCES if path.stem in nothing or path.parent.name in nothing] == []


@pytest.mark.parametrize("path", EXPLAINED, ids=of)
def test_public_names_are_explained(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "the module's first line says what it is for"
    assert [name for name, node in _public(tree) if not ast.get_docstring(node)] == []


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(parent: ast.Module | ast.ClassDef, prefix: str = "") -> list[tuple[str, Definition]]:
    found: list[tuple[str, Definition]] = []
    for node in parent.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if any(ast.unparse(decorator).endswith(("overload", ".setter")) for decorator in node.decorator_list):
            continue
        if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list) and _is_abstract(node):
            continue  # a protocol's attribute: its name and type say it
        found.append((f"{prefix}{node.name}", node))
        if isinstance(node, ast.ClassDef):
            found += _public(node, f"{prefix}{node.name}.")
    return found


def _is_abstract(node: Definition) -> bool:
    return len(node.body) == 1 and ast.unparse(node.body[0]) == "..."
