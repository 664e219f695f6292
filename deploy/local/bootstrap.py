# ruff: noqa: INP001 - a script that runs before any package is installed
"""Make `.venv` from the hashed lock and install our packages into it; standard library only.

Done once per lock: a stamp in the environment remembers what it was made from. `--dev` adds what tests need.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).resolve().parents[2]
VENV: Final = ROOT / ".venv"
STAMP: Final = VENV / "made-from.json"
OLDEST, NEWEST = (3, 11), (3, 13)
_LOCKS: Final = {"run": "requirements.lock", "dev": "requirements-dev.lock"}


def main() -> None:
    """Bring the environment up to date, or say why that is impossible."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        _go_on_with_another_python()
    kind = "dev" if "--dev" in sys.argv[1:] else "run"
    made_from = _read_stamp()
    wanted = _fingerprint(kind)
    if made_from.get(kind) == wanted:
        return
    began = time.monotonic()
    _make_venv(made_from)
    _install_lock(ROOT / _LOCKS[kind])
    _install_ours()
    stamp = {kind: wanted, "python": _python()}
    if kind == "dev":
        stamp["run"] = _fingerprint("run")  # the larger environment serves both
    STAMP.write_text(json.dumps(stamp))
    _say(f"ready after {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    print(f"environment: {text}", flush=True)


def _fail(text: str) -> NoReturn:
    sys.stderr.write(f"environment: {text}\n")
    raise SystemExit(1)


def _go_on_with_another_python() -> NoReturn:
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:  # noqa: S603
            os.execv(found, [found, *sys.argv])  # noqa: S606
    _fail(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; install one, or say make PYTHON=…")


def _python() -> str:
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} {ROOT}"


def _fingerprint(kind: str) -> str:
    """Changes with the lock, with our packages' metadata, with the interpreter and with the place."""
    digest = hashlib.sha256(_python().encode())
    for file in (ROOT / _LOCKS[kind], *(package / "pyproject.toml" for package in _packages())):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _packages() -> list[Path]:
    folders = [*(ROOT / "libs").iterdir(), *(ROOT / "services").iterdir(), ROOT / "deploy" / "local"]
    return sorted(folder for folder in folders if (folder / "pyproject.toml").exists())


def _read_stamp() -> dict[str, str]:
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if (VENV / "bin" / "python").exists() else {}


def _make_venv(made_from: dict[str, str]) -> None:
    if made_from.get("python") == _python():
        return
    _say(f"making {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}")
    if VENV.exists():
        shutil.rmtree(VENV)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False, capture_output=True, text=True)  # noqa: S603
    if made.returncode:
        _fail(f"python -m venv failed (on Debian and Ubuntu: install python3-venv)\n{made.stdout}{made.stderr}")


def _pip(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603
        [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _install_lock(lock: Path) -> None:
    """Install with hashes; one line now and then, or one that changes in place on a terminal."""
    total = sum(1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith(" "))
    _say(f"fetching {total} packages of {lock.name}")
    process = _pip("install", "--require-hashes", "--progress-bar", "off", "-r", str(lock))
    lines: list[str] = []
    seen = shown = 0
    for line in process.stdout or ():
        lines.append(line)
        seen += line.startswith(("Collecting ", "Processing ", "Requirement already satisfied: "))
        if line.startswith("Installing collected"):
            _say("unpacking")
        elif seen >= shown + max(1, total // 8):
            shown = seen
            _say(f"{seen} of {total}")
    if process.wait():
        _fail(f"pip could not install {lock.name}:\n{''.join(lines[-20:])}")


def _install_ours() -> None:
    packages = _packages()
    _say(f"installing {len(packages)} packages of ours")
    process = _pip(
        "install", "--no-deps", "--no-build-isolation", *(part for path in packages for part in ("-e", str(path)))
    )
    output, _ = process.communicate()
    if process.returncode:
        _fail(f"pip could not install our packages:\n{output[-3000:]}")


if __name__ == "__main__":
    main()
