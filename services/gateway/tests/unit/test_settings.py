import pytest
from pydantic import SecretStr, ValidationError

from gateway.settings import Settings

KEY = "blocklet-z5pw9M9wm3KFsP4JPwaCH1Ww6VLByZAwxkmybbY6F4NRY"
NEEDED = {
    "HUB_NATS_URL": "nats://u:secret-bus@127.0.0.1:4222",
    "HUB_DATABASE_URL": "postgresql://u:secret-db@127.0.0.1/hub",
    "HUB_KEY_PEPPER": "secret-pepper-0123456789",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def _read() -> Settings:
    return Settings()


def test_only_addresses_and_secrets_are_needed() -> None:
    settings = _read()
    assert (settings.host, settings.port, settings.mount_path) == ("127.0.0.1", 8080, "")
    assert (settings.body_bytes_max, settings.hold_output_tokens, str(settings.welcome_credits)) == (
        31_457_280,
        4096,
        "100",
    )


@pytest.mark.parametrize("name", NEEDED)
def test_no_secret_has_a_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ValidationError):
        _read()


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_BOOTSTRAP_KEY", KEY)
    settings = _read()
    assert settings.bootstrap_key == SecretStr(KEY)
    for text in (repr(settings), settings.model_dump_json()):
        assert "secret" not in text
        assert KEY not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HUB_BOOTSTRAP_KEY", "hunter2"),
        ("HUB_KEY_PEPPER", "short"),
        ("HUB_WELCOME_CREDITS", "-1"),
        ("HUB_WELCOME_CREDITS", "NaN"),
        ("HUB_WELCOME_CREDITS", "1e18"),
        ("HUB_MOUNT_PATH", "ai-kit"),
        ("HUB_MOUNT_PATH", "/a?b"),
        ("HUB_UNPRICED", "maybe"),
        ("HUB_PORT", "0"),
    ],
)
def test_a_wrong_value_is_refused_without_showing_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        _read()
    assert caught.value.errors(include_input=False)[0]["loc"] == (name.removeprefix("HUB_").lower(),)
    assert "hunter2" not in str(caught.value.errors(include_input=False, include_context=False))


@pytest.mark.parametrize(("given", "path"), [("/ai-kit/", "/ai-kit"), ("/", ""), ("/a/b", "/a/b")])
def test_a_mount_path_ends_without_a_slash(monkeypatch: pytest.MonkeyPatch, given: str, path: str) -> None:
    monkeypatch.setenv("HUB_MOUNT_PATH", given)
    assert _read().mount_path == path


def test_every_setting_is_described() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]
