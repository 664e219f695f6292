"""`make mutants`: puts each seeded bug into a copy of the tree, and shows which test catches it.

    python -m mutants [--list] [word …]      only the patches whose name has one of the words

Exits with 1 when a bug survives, a patch no longer fits, or the tests fail without any bug.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.patches import ROOT, Patch, PatchError, all_patches

_PATIENCE_S = 600


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    chosen = parser.parse_args(arguments)
    patches = [p for p in all_patches() if not chosen.words or any(word in p.name for word in chosen.words)]
    if chosen.list:
        for patch in patches:
            print(f"{patch.name}: {patch.bug}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return _campaign(patches, Path(folder))


def _campaign(patches: Sequence[Patch], folder: Path) -> int:
    tests = list(dict.fromkeys(test for patch in patches for test in patch.caught_by))
    print(f"{len(patches)} bugs; first the {len(tests)} tests on a tree without any", flush=True)
    clean = folder / "clean"
    _copy(clean)
    code, output = _run(clean, tests)
    if code:
        print(output)
        print("The tests fail without a bug: nothing would be shown.")
        return 1
    rows = []
    for patch in patches:
        began = time.monotonic()
        verdict = _verdict(patch, folder / patch.name)
        rows.append((patch, verdict))
        print(f"  {patch.name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    _table(rows)
    return 0 if all(_is_caught(verdict) for _, verdict in rows) else 1


def _verdict(patch: Patch, tree: Path) -> str:
    _copy(tree)
    try:
        patch.apply(tree)
        code, output = _run(tree, patch.caught_by, "--exitfirst")
    except PatchError as error:
        return f"NO LONGER FITS: {error}"
    except subprocess.TimeoutExpired:
        return f"NOT DECIDED within {_PATIENCE_S} s"
    finally:
        shutil.rmtree(tree)
    failed = re.search(r"^FAILED (\S+)", output, re.MULTILINE)
    if code == 1 and failed is not None:
        return failed[1]
    # An error outside of a test is no catch: the tree did not even start.
    return "SURVIVES" if code == 0 else f"NOT DECIDED, pytest ended with {code}:\n{output[-3000:]}"


def _is_caught(verdict: str) -> bool:
    return "::" in verdict.partition("\n")[0]


def _table(rows: Sequence[tuple[Patch, str]]) -> None:
    width = max((len(patch.bug) for patch, _ in rows), default=0)
    print(f"\n{'bug':{width}}  {'source':6}  caught by")
    for patch, verdict in rows:
        print(f"{patch.bug:{width}}  {patch.source:6}  {verdict}")
    caught = sum(_is_caught(verdict) for _, verdict in rows)
    print(f"\n{caught} of {len(rows)} caught")


def _copy(tree: Path) -> None:
    """What git knows or would add: no virtual environment, no data folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def _run(tree: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Exit code and output of pytest with the packages of a copy, in this process' environment else."""
    sources = [*tree.glob("libs/*/src"), *tree.glob("services/*/src"), *tree.glob("deploy/*/src"), tree / "tests"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "STATE_MACHINE_SHRINK": "no",
        **({"STATE_MACHINE_EXAMPLES": "100"} if options else {}),  # it ends with the first that fails
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--tb=short", *options, *tests]
    ended = subprocess.run(
        command, cwd=tree, env=environment, check=False, timeout=_PATIENCE_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return ended.returncode, ended.stdout


if __name__ == "__main__":
    raise SystemExit(main())
