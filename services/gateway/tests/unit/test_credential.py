import pytest

from gateway.auth import credential


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([(b"authorization", b"Bearer abc")], b"abc"),
        ([(b"authorization", b"bearer  abc ")], b"abc"),
        ([(b"authorization", b"Bearer abc"), (b"authorization", b"Bearer abc")], b"abc"),
        ([(b"authorization", b"Bearer abc"), (b"authorization", b"Bearer def")], None),
        ([(b"authorization", b"Bearer abc"), (b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Basic YTpi")], None),
        ([(b"authorization", b"Bearer " + b"a" * 10_000)], None),
        ([(b"x-user-did", b"z1abc"), (b"x-user-role", b"owner")], None),
        ([], None),
    ],
)
def test_only_one_bearer_token_counts(headers: list[tuple[bytes, bytes]], token: bytes | None) -> None:
    assert credential.bearer(headers) == token


@pytest.mark.parametrize(
    ("value", "project"),
    [
        (b"  z1abc ", "z1abc"),
        (b"%40aigne%2Faigne-hub%3Alaptop", "@aigne/aigne-hub:laptop"),
        (b"%E4%BD%A0", "你"),
        (b"%FF", "%FF"),
        (b"a%0Ab%00", "ab"),
        (b"x" * 500, "x" * 200),
        (b"\xff", "\ufffd"),
        (b"", ""),
    ],
)
@pytest.mark.parity(40)
def test_project_is_trimmed_decoded_and_bounded(value: bytes, project: str) -> None:
    assert credential.project(value) == project
