"""Providers from the environment."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from provider_router.catalog.providers import Provider, load
from provider_router.settings import Settings

SECRET = "sk-very-secret"
BASE = {"HUB_NATS_URL": "nats://127.0.0.1:4222", "HUB_DATABASE_URL": "postgresql://u:p@127.0.0.1/hub"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HUB_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


def settings(monkeypatch: pytest.MonkeyPatch, **env: str) -> Settings:
    for name, value in {**BASE, **env}.items():
        monkeypatch.setenv(name, value)
    return Settings()


def providers(monkeypatch: pytest.MonkeyPatch, **env: str) -> dict[str, Provider]:
    return load(settings(monkeypatch, **env))


def secret(provider: Provider) -> str | None:
    return None if provider.api_key is None else provider.api_key.get_secret_value()


def test_the_demo_provider_is_there_without_any_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert providers(monkeypatch) == {"demo": Provider("demo", "demo", "", None, ("echo",), 100)}


def test_the_demo_provider_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert providers(monkeypatch, HUB_DEMO_PROVIDER="OFF") == {}


def test_the_usual_keys_add_the_usual_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers(monkeypatch, OPENAI_API_KEY=SECRET, ANTHROPIC_API_KEY="other", HUB_DEMO_PROVIDER="off")
    assert list(found) == ["anthropic", "openai"]
    assert (found["openai"].base_url, found["openai"].kind) == ("https://api.openai.com/v1", "openai")
    assert (found["anthropic"].base_url, found["anthropic"].kind) == ("https://api.anthropic.com/v1", "anthropic")
    assert (secret(found["openai"]), secret(found["anthropic"])) == (SECRET, "other")


def test_an_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "openai" not in providers(monkeypatch, OPENAI_API_KEY="")


def test_a_base_url_alone_makes_a_provider_without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers(monkeypatch, OPENAI_BASE_URL="http://localhost:11434/v1/")
    assert (found["openai"].base_url, found["openai"].api_key) == ("http://localhost:11434/v1", None)


def test_any_number_of_providers_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers(
        monkeypatch,
        HUB_PROVIDERS__MY_LLM__BASE_URL="https://llm.example.com/v1",
        HUB_PROVIDERS__MY_LLM__API_KEY=SECRET,
        HUB_PROVIDERS__MY_LLM__MODELS=" qwen3, llama-4 ,qwen3,",
        HUB_PROVIDERS__MY_LLM__WEIGHT="7",
        HUB_PROVIDERS__CLAUDES__BASE_URL="https://claude.example.com/v1",
        HUB_PROVIDERS__CLAUDES__KIND="anthropic",
    )
    assert found["my_llm"].models == ("qwen3", "llama-4")
    assert (found["my_llm"].kind, found["my_llm"].weight, secret(found["my_llm"])) == ("openai", 7, SECRET)
    assert (found["claudes"].kind, found["claudes"].models, found["claudes"].api_key) == ("anthropic", None, None)


def test_models_of_the_usual_provider_can_be_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers(monkeypatch, OPENAI_API_KEY=SECRET, HUB_PROVIDERS__OPENAI__MODELS="gpt-4o-mini")
    assert (found["openai"].models, secret(found["openai"])) == (("gpt-4o-mini",), SECRET)


def test_a_key_never_goes_to_a_base_url_that_was_configured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers(monkeypatch, OPENAI_API_KEY=SECRET, HUB_PROVIDERS__OPENAI__BASE_URL="https://elsewhere.example")
    assert (found["openai"].base_url, found["openai"].api_key) == ("https://elsewhere.example", None)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/v1",
        "llm.example.com/v1",
        "https://",
        f"https://user:{SECRET}@h/v1",
        f"https://h/v1?key={SECRET}",
        f"https://h/v1#{SECRET}",
        "https://h:99999/v1",
        "https://h/a b",
        "https://h/\nx",
    ],
)
def test_a_base_url_with_anything_else_in_it_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    for name in ("OPENAI_BASE_URL", "HUB_PROVIDERS__X__BASE_URL"):
        with monkeypatch.context() as patch, pytest.raises(ValidationError) as refused:
            settings(patch, **{name: url})
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://[::1]:9", "http://localhost/v1", "https://10.0.0.1"])
def test_plain_http_is_allowed_to_this_machine(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert providers(monkeypatch, OPENAI_BASE_URL=url)["openai"].base_url == url


@pytest.mark.parametrize("url", ["http://10.0.0.1/v1", "http://llm.internal", "http://127.0.0.1.example.com"])
def test_plain_http_beyond_this_machine_must_be_asked_for(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with monkeypatch.context() as patch, pytest.raises(ValidationError, match="HUB_ALLOW_PLAIN_HTTP"):
        settings(patch, HUB_PROVIDERS__X__BASE_URL=url)
    assert "x" in providers(monkeypatch, HUB_PROVIDERS__X__BASE_URL=url, HUB_ALLOW_PLAIN_HTTP="true")


@pytest.mark.parametrize(
    "env",
    [
        {"HUB_PROVIDERS__DEMO__BASE_URL": "https://h"},
        {"HUB_PROVIDERS__-X__BASE_URL": "https://h"},
        {f"HUB_PROVIDERS__{'X' * 41}__BASE_URL": "https://h"},
        {"HUB_PROVIDERS__X__API_KEY": SECRET},
        {"HUB_PROVIDERS__X__BASE_URL": "https://h", "HUB_PROVIDERS__X__KIND": "gemini"},
        {"HUB_PROVIDERS__X__BASE_URL": "https://h", "HUB_PROVIDERS__X__WEIGHT": "-1"},
        {"HUB_PROVIDERS__X__BASE_URL": "https://h", "HUB_PROVIDERS__X__MODELS": "a b"},
        {"HUB_PROVIDERS__X__BASE_URL": "https://h", "HUB_PROVIDERS__X__APIKEY": SECRET},
        {"HUB_PROVIDERS__X__BASE_URL": "https://h", "HUB_PROVIDERS__X__API_KEY": f"{SECRET}\r\nx: y"},
        {"OPENAI_API_KEY": f"{SECRET} "},
        {"HUB_ATTEMPTS_MAX": "0"},
    ],
)
def test_a_wrong_setting_is_refused_without_its_secret(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(monkeypatch, **env)
    assert SECRET not in str(refused.value)


def test_a_wrong_setting_is_called_by_its_own_name() -> None:
    wrong = {"OPENAI_BASE_URL": "http://10.0.0.1", "HUB_PROVIDERS__X__KIND": "gemini", "HUB_LEASE_S": "0"}
    checked = subprocess.run(
        [sys.executable, "-m", "provider_router", "--check"],
        env={**BASE, **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    named = {line.split(": ")[1] for line in checked.stderr.splitlines()}
    assert (checked.returncode, named) == (78, set(wrong))


def test_no_key_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings(
        monkeypatch,
        OPENAI_API_KEY=SECRET,
        HUB_PROVIDERS__X__BASE_URL="https://h",
        HUB_PROVIDERS__X__API_KEY=SECRET,
    )
    assert SECRET not in f"{read!r}{read.model_dump_json()}{load(read)!r}"


def test_the_spool_lies_in_the_data_folder_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(settings(monkeypatch, HUB_DATA_DIR="/data").spool) == "/data/spool"
    assert str(settings(monkeypatch, HUB_SPOOL_DIR="/spool").spool) == "/spool"
