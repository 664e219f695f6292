"""Signed calls between components of one application: the application's Ed25519 key signs what is asked.

Signed is the SHA3-256 digest of the canonical JSON `{body, exp, iat, method, query, url}`. Stricter than the original
in two points: a call from the future, and one that is valid for longer than five minutes, are refused.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runtime.canonical_json import CanonicalError, canonical

LIFETIME_S: Final = 300
_AHEAD_MAX_S: Final = 60
_SEED_BYTES: Final = 32
_KEY_BYTES: Final = (32, 64)
_KEY_PART: Final = re.compile(r"\[([^\[\]]*)\]")
_QUERY_FIELDS_MAX: Final = 1000
_QUERY_DEPTH_MAX: Final = 5


class Verdict(StrEnum):
    """What a receiver thinks of a call."""

    GOOD = "good"
    UNSIGNED = "unsigned"
    """No signature: 400."""
    WRONG = "wrong"
    """Another key, another content, or too late: 401."""


@dataclass(frozen=True, slots=True)
class AppKey:
    """The key of an application."""

    private: Ed25519PrivateKey

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a secret key: hex, with `0x` or without, or base58 with `z`; a seed, or seed and public key.

        Raises:
            ValueError: it is none; the text does not stand in the message.
        """
        try:
            raw = base58.b58decode(text[1:]) if text.startswith("z") else bytes.fromhex(text.removeprefix("0x"))
        except ValueError as error:
            raise ValueError("an application key is hex or base58") from error
        if len(raw) not in _KEY_BYTES:
            raise ValueError("an application key has 32 or 64 bytes")
        key = Ed25519PrivateKey.from_private_bytes(raw[:_SEED_BYTES])
        if len(raw) > _SEED_BYTES and key.public_key().public_bytes_raw() != raw[_SEED_BYTES:]:
            raise ValueError("the second half of an application key is its public key")
        return cls(key)

    @property
    def public(self) -> Ed25519PublicKey:
        """What verifies its signatures."""
        return self.private.public_key()


def signed_headers(key: AppKey, component_did: str, method: str, url: str, body: Any, now: int) -> dict[str, str]:
    """The headers that make a call a signed one.

    Args:
        key: of the application.
        component_did: who calls; not signed.
        method: in any case.
        url: path and query, encoded as they will be sent.
        body: the parsed JSON, None without a body.
        now: Unix seconds.

    Raises:
        CanonicalError: the body cannot be signed.
    """
    digest = _digest(method, url, body, now, now + LIFETIME_S)
    return {
        "x-component-did": component_did,
        "x-component-sig": "0x" + key.private.sign(digest).hex(),
        "x-component-sig-iat": str(now),
        "x-component-sig-exp": str(now + LIFETIME_S),
        "x-component-sig-version": "1",
    }


def judge(key: Ed25519PublicKey, method: str, url: str, headers: Mapping[str, str], body: bytes, now: int) -> Verdict:
    """Whether a call was signed by an application's key, for this content, and not too long ago.

    Args:
        key: of the application.
        method: in any case.
        url: path and query as they came.
        headers: names in lower case.
        body: as it came.
        now: Unix seconds.
    """
    signature = headers.get("x-component-sig", "")
    if not signature:
        return Verdict.UNSIGNED
    try:
        issued, ends = int(headers.get("x-component-sig-iat", "")), int(headers.get("x-component-sig-exp", ""))
        raw = base58.b58decode(signature[1:]) if signature[0] == "z" else bytes.fromhex(signature.removeprefix("0x"))
        if not issued - _AHEAD_MAX_S <= now <= ends or ends - issued > LIFETIME_S:
            return Verdict.WRONG
        parsed = json.loads(body) if body.strip() else None
        key.verify(raw, _digest(method, url, parsed, issued, ends))
    except (ValueError, RecursionError, CanonicalError, InvalidSignature):
        return Verdict.WRONG
    return Verdict.GOOD


def query_object(text: str) -> dict[str, Any]:
    """A query string as JavaScript's `qs` reads it: `a=1&a=2` and `a[0]=1` are lists, `a[b]=1` is an object.

    Raises:
        ValueError: too many fields, or nested too deep.
    """
    found: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX):
        root, *parts = [name.split("[", 1)[0], *_KEY_PART.findall(name)] if "[" in name[1:] else [name]
        if len(parts) > _QUERY_DEPTH_MAX:
            raise ValueError("a query that is nested too deep")
        _put(found, [root, *parts], value)
    return {name: _with_lists(value) for name, value in found.items()}


def _put(into: dict[str, Any], parts: list[str], value: str) -> None:
    for part in parts[:-1]:
        below = into.setdefault(part, {})
        if not isinstance(below, dict):
            raise ValueError("a query in which a name is both text and object")  # noqa: TRY004 - a refusal
        into = below
    last = parts[-1] or str(len(into))
    known = into.get(last)
    if known is None:
        into[last] = value
    elif isinstance(known, list):
        known.append(value)
    else:
        into[last] = [known, value]


def _with_lists(value: Any) -> Any:
    """Objects whose names are 0, 1, 2 and so on are lists."""
    if not isinstance(value, dict):
        return value
    items = {name: _with_lists(item) for name, item in value.items()}
    if items and all(name.isdigit() for name in items):
        return [items[name] for name in sorted(items, key=int)]
    return items


def _digest(method: str, url: str, body: Any, issued: int, ends: int) -> bytes:
    split = urlsplit(url)
    signed = {
        "iat": issued,
        "exp": ends,
        "body": {} if body is None else body,
        "query": query_object(split.query),
        "method": method.lower(),
        "url": split.path,
    }
    return hashlib.sha3_256(canonical(signed)).digest()
