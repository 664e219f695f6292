"""Roles and what they may do: guest < member < admin < owner."""

from typing import Final

from contracts.rpc.identity import Role

_RANK: Final[dict[Role, int]] = {"guest": 0, "member": 1, "admin": 2, "owner": 3}


def at_least(role: Role, needed: Role) -> bool:
    """Whether a role is the needed one or stands above it."""
    return _RANK[role] >= _RANK[needed]


def is_admin(role: Role) -> bool:
    """Owners and administrators: they see and change what belongs to others."""
    return at_least(role, "admin")
