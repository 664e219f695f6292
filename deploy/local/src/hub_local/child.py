"""Trampoline before each child of the supervisor: DEATH_SIGNAL IDENTITY PARENT_PID COMMAND.

Standard library only, started with `-I -S`. It ties the child's life to the supervisor's (Linux) and, for PostgreSQL
under root, gives up root: `namespace` looks like `nobody` inside a user namespace while all files stay root's,
`setuid` really becomes `nobody`, `same` changes nothing.
"""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
NOBODY = 65534


def _enter_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs 10 ms here
            file.write(text)


def main(death_signal: str, identity: str, parent: str, *command: str) -> None:
    """Change identity, ask for the death signal, become the command."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    if identity == "namespace" and libc is not None:
        _enter_namespace(libc)
    elif identity == "setuid":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))  # after the credential change, which would clear it
        if os.getppid() != int(parent):
            os._exit(1)  # the supervisor died before the signal was asked for
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
