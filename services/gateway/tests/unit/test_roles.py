"""The original's role checks: nobody 401, too small a role 403, in its words."""

import json
from typing import get_args

import pytest

from contracts.errors import HubError
from contracts.rpc.identity import Role
from gateway.api import errors
from gateway.api.services import needs
from gateway.auth.principals import Principal, refused
from gateway.auth.roles import at_least, is_admin


def _principal(role: Role) -> Principal:
    return Principal(user="z1", account="z1", role=role, key_id="z1k", project="z1k")


@pytest.mark.parity(35)
async def test_only_owners_and_administrators_pass_the_admin_gate() -> None:
    gate = needs("admin")
    passed: list[Role] = []
    for role in get_args(Role):
        try:
            await gate(_principal(role))
        except HubError as error:
            answer = (error.status, json.loads(errors.admin_body(error)))
            if answer != (403, {"code": "forbidden", "error": "no permission"}):
                raise
        else:
            passed.append(role)
    assert sorted(passed) == ["admin", "owner"]
    nobody = refused()
    assert (nobody.status, json.loads(errors.admin_body(nobody))) == (
        401,
        {"code": "forbidden", "error": "not authorized"},
    )


def test_roles_stand_in_order() -> None:
    assert at_least("owner", "admin")
    assert at_least("member", "member")
    assert not at_least("guest", "member")
    assert is_admin("admin")
    assert not is_admin("member")
