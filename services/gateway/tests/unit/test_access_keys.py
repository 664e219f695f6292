import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import access_keys

VECTORS = json.loads(Path(__file__).with_name("access_key_vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["accessKeys"], ids=lambda vector: vector["accessKeyId"])
@pytest.mark.parity(33)
def test_id_of_a_key_is_the_wallet_address_that_the_original_gives_it(vector: dict[str, str]) -> None:
    assert access_keys.key_id(vector["accessKey"]) == vector["accessKeyId"]
    assert access_keys.address(bytes.fromhex(vector["publicKeyHex"][2:])) == vector["accessKeyId"]


@pytest.mark.parametrize("vector", VECTORS["addresses"], ids=lambda vector: vector["address"])
def test_address_of_an_account_key_is_derived_as_in_the_original(vector: dict[str, str]) -> None:
    assert access_keys.address(bytes.fromhex(vector["publicKeyHex"][2:])) == vector["address"]


@pytest.mark.parametrize("text", [*VECTORS["notAccessKeys"], "", "blocklet-", "blocklet-z", "blocklet-z0OIl", "é" * 40])
def test_other_texts_are_no_access_keys(text: str) -> None:
    assert access_keys.key_id(text) is None


def test_a_key_of_another_length_than_32_bytes_is_none() -> None:
    text = VECTORS["accessKeys"][0]["accessKey"]
    assert access_keys.key_id(text + "1") is None
    assert access_keys.key_id(text[:-3]) is None


@given(st.text(max_size=80))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    assert access_keys.key_id(text) is None
    assert access_keys.key_id(f"blocklet-z{text}") is None or text.isascii()


def test_new_keys_differ_and_have_the_form() -> None:
    keys = [access_keys.new_access_key() for _ in range(20)]
    assert len({key.text for key in keys}) == len({key.id for key in keys}) == 20
    assert all(access_keys.key_id(key.text) == key.id for key in keys)


def test_digest_depends_on_the_pepper_and_hides_the_text() -> None:
    text = VECTORS["accessKeys"][0]["accessKey"].encode()
    first, second = access_keys.digest(b"pepper one", text), access_keys.digest(b"pepper two", text)
    assert first != second
    assert len(first) == 32
    assert text not in first
