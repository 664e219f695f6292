import pytest
from pydantic import SecretStr

from contracts.errors import ErrorCode, HubError
from provider_router import signing


def test_each_kind_takes_its_key_in_its_own_header() -> None:
    key = SecretStr("sk-1")
    assert signing.headers("openai", key) == (("authorization", "Bearer sk-1"),)
    assert signing.headers("anthropic", key) == (("x-api-key", "sk-1"),)
    assert signing.headers("demo", key) == ()


def test_without_a_key_there_is_no_header() -> None:
    assert signing.headers("openai", None) == ()
    assert signing.headers("openai", SecretStr("")) == ()


def test_an_unknown_kind_is_refused_without_the_key() -> None:
    with pytest.raises(HubError) as error:
        signing.headers("gemini", SecretStr("sk-secret"))
    assert error.value.code is ErrorCode.INTERNAL_ERROR
    assert "sk-secret" not in str(error.value)
