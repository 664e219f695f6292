"""The form of a patch, and putting it into a tree.

First lines, up to the first `---`: what the bug is, `Source:` its number in the settle protocol where it has one,
`Caught by:` ids of the tests to run, space between. Then per file `--- path`, and in it changes divided by `@@`: lines
after `-` stand in the file exactly once, and those after `+` take their place. A path may be a pattern, as the
migrations have one function in several files: then every file that has the lines is changed, and `Function:` names the
one whose newest definition must be among them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]


class PatchError(ValueError):
    """A patch has another form, or no longer fits the tree."""


@dataclass(frozen=True)
class Change:
    """One search and replace."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Patch:
    """One seeded bug."""

    name: str
    bug: str
    source: str
    function: str
    caught_by: tuple[str, ...]
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        """As a test's id."""
        return self.name

    def changed(self, root: Path) -> dict[Path, str]:
        """New texts of the files that it changes.

        Raises:
            PatchError: lines that it looks for are not there, or not once.
        """
        texts: dict[Path, str] = {}
        for change in self.changes:
            found = False
            for path in sorted(root.glob(change.path)):
                text = texts.get(path) or path.read_text("utf-8")
                count = text.count(change.before)
                if count > 1:
                    raise PatchError(f"{self.name}: {change.path} has these lines {count} times:\n{change.before}")
                if count:
                    found = True
                    texts[path] = text.replace(change.before, change.after)
            if not found:
                raise PatchError(f"{self.name}: {change.path} has not these lines:\n{change.before}")
        self._check_function(root, texts)
        return texts

    def _check_function(self, root: Path, texts: dict[Path, str]) -> None:
        """A migration that defines the function anew makes a bug in the old definition one without effect."""
        files = [path for change in self.changes if change.path.endswith(".sql") for path in root.glob(change.path)]
        if not files:
            return
        newest = max((path for path in files if f"function {self.function}(" in path.read_text("utf-8")), default=None)
        if not self.function or newest not in texts:
            raise PatchError(f"{self.name}: the newest definition of {self.function or '?'} is not changed: {newest}")

    def apply(self, root: Path) -> None:
        """Write the bug into a tree.

        Raises:
            PatchError: see `changed`; nothing was written.
        """
        for path, text in self.changed(root).items():
            path.write_text(text, "utf-8")


def all_patches() -> list[Patch]:
    """Every patch of the folder, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def read(path: Path) -> Patch:
    """The patch of a file.

    Raises:
        PatchError: another form.
    """
    head, *files = ("\n" + path.read_text("utf-8")).split("\n--- ")
    fields = {"Source": "", "Function": "", "Caught by": ""}
    words = []
    for line in head.strip().splitlines():
        name, colon, value = line.partition(": ")
        if colon and name in fields:
            fields[name] = value.strip()
        else:
            words.append(line.strip())
    changes = tuple(change for text in files for change in _changes(path, text))
    if not (words and fields["Caught by"] and changes):
        raise PatchError(f"{path.name}: a patch says what the bug is, `Caught by:` which tests, and what it changes")
    tests = tuple(fields["Caught by"].split())
    return Patch(path.stem, " ".join(words), fields["Source"], fields["Function"], tests, changes)


def _changes(file: Path, text: str) -> Iterator[Change]:
    path, _, body = text.partition("\n")
    for hunk in body.rstrip("\n").split("\n@@\n"):
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line.startswith("-"))
        after = "".join(f"{line[1:]}\n" for line in lines if line.startswith("+"))
        if not before or any(line[:1] not in {"-", "+"} for line in lines):
            raise PatchError(f"{file.name}: lines of a change begin with - or +:\n{hunk}")
        yield Change(path.strip(), before, after)
