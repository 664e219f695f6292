"""Patches that fit the tree as it is now; `make mutants` shows that they are caught."""

import ast
from pathlib import Path

import pytest

from mutants.patches import ROOT, Patch, PatchError, all_patches, read

PATCHES = all_patches()


def test_there_are_seeded_bugs_enough() -> None:
    assert len(PATCHES) >= 10


@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_patch_fits_the_tree_and_leaves_code_that_can_be_read(patch: Patch) -> None:
    for path, text in patch.changed(ROOT).items():
        assert text != path.read_text("utf-8")
        if path.suffix == ".py":
            ast.parse(text, str(path))


@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_patch_names_tests_that_exist(patch: Patch) -> None:
    for test in patch.caught_by:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        function = name.partition("[")[0]
        assert not function or f"def {function}(" in (ROOT / file).read_text("utf-8"), test


SMALL = """A bug.
Source: M9
Function: s.f
Caught by: tests/a.py::test_a tests/b.py
--- src/*.sql
-    one
+    two
@@
-three
"""


def test_patch_is_read_and_applied_to_every_file_that_has_its_lines(tmp_path: Path) -> None:
    (tmp_path / "small.patch").write_text(SMALL)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "1.sql").write_text("create function s.f()\n    one\nthree\n")
    (tmp_path / "src" / "2.sql").write_text("    one\n")
    (tmp_path / "src" / "3.sql").write_text("other\n")
    patch = read(tmp_path / "small.patch")
    assert (patch.bug, patch.source, patch.caught_by) == ("A bug.", "M9", ("tests/a.py::test_a", "tests/b.py"))
    patch.apply(tmp_path)
    assert [(tmp_path / "src" / f"{n}.sql").read_text() for n in (1, 2, 3)] == [
        "create function s.f()\n    two\n",
        "    two\n",
        "other\n",
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("none\n", "has not these lines"), ("    one\n    one\nthree\n", "2 times")]
)
def test_patch_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "small.patch").write_text(SMALL)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "1.sql").write_text(text)
    with pytest.raises(PatchError, match=words):
        read(tmp_path / "small.patch").changed(tmp_path)


@pytest.mark.parametrize("text", ["A bug.\n--- a\n-x\n", SMALL.replace("-three", "three"), "Caught by: t\n--- a\n-x\n"])
def test_patch_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "small.patch").write_text(text)
    with pytest.raises(PatchError):
        read(tmp_path / "small.patch")


def test_patch_of_a_function_that_is_defined_anew_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.patch").write_text(SMALL)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "1.sql").write_text("create function s.f()\n    one\nthree\n")
    (tmp_path / "src" / "2.sql").write_text("create or replace function s.f()\n    uno\n")
    with pytest.raises(PatchError, match=r"the newest definition of s\.f is not changed"):
        read(tmp_path / "small.patch").changed(tmp_path)
