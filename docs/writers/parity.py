"""`parity.md`: which rows of the parity list tests show, from the markers on tests."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_TEST_FOLDERS: Final = ("libs", "services", "deploy", "tests")
_NEEDS: Final = {"M": "must", "S": "should", "F": "better than the original", "MF": "must, repaired"}


class Feature(NamedTuple):
    """One row of the list."""

    number: int
    need: str
    title: str


class Marked(NamedTuple):
    """A test and the rows it shows."""

    test: str
    rows: tuple[int, ...]


def text(root: Path) -> str:
    """The list with the tests of each row.

    Raises:
        ValueError: a marker names a row that is not in the list, or something else than numbers.
    """
    features = read_features(root / "docs" / "parity.tsv")
    tests: dict[int, list[str]] = {feature.number: [] for feature in features}
    for marked in all_marked(root):
        for row in marked.rows:
            if row not in tests:
                raise ValueError(f"{marked.test}: there is no parity row {row}")
            tests[row].append(marked.test)
    shown = sum(1 for names in tests.values() if names)
    lines = [
        f"| {feature.number} | {feature.title} | {_NEEDS[feature.need]} |"
        f" {'<br>'.join(f'`{name}`' for name in tests[feature.number]) or 'not yet'} |"
        for feature in features
    ]
    introduction = (
        f"{shown} of {len(features)} rows are shown by a test. A test claims a row with"
        " `@pytest.mark.parity(2, 3)`; the list itself is `parity.tsv`."
    )
    return "\n".join(
        [
            "# Parity with the original AIGNE Hub",
            "",
            introduction,
            "",
            "| # | feature | need | shown by |",
            "|--:|---|---|---|",
            *lines,
            "",
        ]
    )


def read_features(file: Path) -> list[Feature]:
    """The list: number, need and title, separated by tabs."""
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines() if line]
    return [Feature(int(number), need, title) for number, need, title in rows]


def all_marked(root: Path) -> list[Marked]:
    """Every test with a parity marker, in the order of their names."""
    files = sorted(file for folder in _TEST_FOLDERS for file in (root / folder).rglob("test_*.py"))
    return [marked for file in files for marked in _marked(file, file.relative_to(root).as_posix())]


def _marked(file: Path, name: str) -> Iterator[Marked]:
    tree = ast.parse(file.read_text("utf-8"), name)
    of_module = [row for mark in _module_marks(tree) for row in _rows(mark, name)]
    yield from _marked_in(tree, name, of_module)


def _marked_in(parent: ast.Module | ast.ClassDef, name: str, inherited: list[int]) -> Iterator[Marked]:
    for node in parent.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        rows = [*inherited, *(row for mark in node.decorator_list for row in _rows(mark, f"{name}::{node.name}"))]
        if isinstance(node, ast.ClassDef):
            yield from _marked_in(node, f"{name}::{node.name}", rows)
        elif rows and node.name.startswith("test_"):
            yield Marked(f"{name}::{node.name}", tuple(sorted(set(rows))))


def _module_marks(tree: ast.Module) -> list[ast.expr]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            return list(node.value.elts) if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
    return []


def _rows(mark: ast.expr, where: str) -> list[int]:
    if not isinstance(mark, ast.Call) or ast.unparse(mark.func) != "pytest.mark.parity":
        return []
    rows = [argument.value for argument in mark.args if isinstance(argument, ast.Constant)]
    if not rows or len(rows) != len(mark.args) or not all(isinstance(row, int) for row in rows):
        raise ValueError(f"{where}: parity takes numbers of rows")
    return [row for row in rows if isinstance(row, int)]
