"""The scan that turns markers on tests into `docs/parity.md`."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))
from writers import parity  # noqa: E402 - the generator's folder is no package that is installed

MARKED = """
import pytest

pytestmark = [pytest.mark.parity(7)]

@pytest.mark.parity(2, 3)
def test_one(): ...

@pytest.mark.parametrize("x", [1])
@pytest.mark.parity(3)
async def test_two(x): ...

@pytest.mark.parity(5)
class TestGroup:
    @pytest.mark.parity(6)
    def test_three(self): ...

def helper(): ...
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one test file and a list of nine rows."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "parity.tsv").write_text("".join(f"{row}\tM\tRow {row}\n" for row in range(1, 10)))
    (tmp_path / "tests" / "test_x.py").write_text(MARKED)
    return tmp_path


def test_markers_on_functions_classes_and_modules_count(tree: Path) -> None:
    assert parity.all_marked(tree) == [
        parity.Marked("tests/test_x.py::test_one", (2, 3, 7)),
        parity.Marked("tests/test_x.py::test_two", (3, 7)),
        parity.Marked("tests/test_x.py::TestGroup::test_three", (5, 6, 7)),
    ]


def test_row_without_a_test_says_so(tree: Path) -> None:
    text = parity.text(tree)
    assert "| 1 | Row 1 | must | not yet |" in text
    assert "| 3 | Row 3 | must | `tests/test_x.py::test_one`<br>`tests/test_x.py::test_two` |" in text
    assert "5 of 9 rows" in text


@pytest.mark.parametrize("marker", ["parity()", "parity('2')", "parity(row)", "parity(99)"])
def test_marker_that_names_no_row_is_refused(tree: Path, marker: str) -> None:
    (tree / "tests" / "test_y.py").write_text(f"@pytest.mark.{marker}\ndef test_y(): ...\n")
    with pytest.raises(ValueError, match="parity"):
        parity.text(tree)


def test_list_has_every_row_once() -> None:
    numbers = [feature.number for feature in parity.read_features(ROOT / "docs" / "parity.tsv")]
    assert numbers == list(range(1, 133))
