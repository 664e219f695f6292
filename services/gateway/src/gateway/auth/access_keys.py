"""Access keys: `blocklet-` and the base58 text of an Ed25519 public key; the id is that key's wallet address.

Only the text is secret: whoever knows it may call. It is stored as HMAC-SHA-256 under the pepper, so that a copy of
the database neither shows a key nor lets one be guessed offline.
"""

import hashlib
import hmac
from typing import Final, NamedTuple

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX: Final = "blocklet-"
_ACCOUNT_ED25519_SHA3: Final = b"\x00\x01"
"""DID type of an account wallet: role 0, key Ed25519 (0), hash SHA3-256 (1), in 6, 5 and 5 bits."""
_PUBLIC_KEY_BYTES: Final = 32
_TEXT_MAX: Final = len(PREFIX) + 1 + 44
"""32 bytes are at most 44 base58 digits, `z` before them."""


class AccessKey(NamedTuple):
    """A new key: the only time its text exists."""

    id: str
    text: str


def address(public_key: bytes) -> str:
    """The wallet address of an Ed25519 account key, e.g. `z1m1SfAb…`.

    Source: DID derivation, `body = type ‖ SHA3(key)[:20]`, `z` + base58(body ‖ SHA3(body)[:4]).
    """
    body = _ACCOUNT_ED25519_SHA3 + hashlib.sha3_256(public_key).digest()[:20]
    return "z" + base58.b58encode(body + hashlib.sha3_256(body).digest()[:4]).decode()


def new_public_key() -> bytes:
    """The public key of a random wallet; its secret key is forgotten at once, nobody signs with it."""
    return Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def new_user_did() -> str:
    """The address of a random wallet, for a user that brings none."""
    return address(new_public_key())


def new_access_key() -> AccessKey:
    """A random access key."""
    public_key = new_public_key()
    return AccessKey(address(public_key), f"{PREFIX}z{base58.b58encode(public_key).decode()}")


def key_id(text: str) -> str | None:
    """The id that belongs to a key's text; None when the text has not the form of an access key."""
    if not text.startswith(f"{PREFIX}z") or len(text) > _TEXT_MAX:
        return None
    try:
        public_key = base58.b58decode(text[len(PREFIX) + 1 :])
    except ValueError:
        return None
    return address(public_key) if len(public_key) == _PUBLIC_KEY_BYTES else None


def digest(pepper: bytes, text: bytes) -> bytes:
    """The form in which a key is stored and found in the cache: 32 bytes."""
    return hmac.digest(pepper, text, "sha256")
