"""Canonical JSON as ArcBlock's packages sign it: one text per value, whatever the order and spelling it came in.

No white space; members sorted by UTF-16 code units; numbers as JavaScript prints the double. It is RFC 8785, and like
JavaScript it writes `null` for a number that no double can hold.
"""

import math
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Final

_EXACT_MAX: Final = 2**53
_PLAIN_DIGITS_MAX: Final = 21
_PLAIN_ZEROS_MAX: Final = 6


class CanonicalError(ValueError):
    """A value that has no canonical form: a lone surrogate, too deep, or nothing that JSON knows."""


def canonical(value: Any) -> bytes:
    """The canonical text of a value made of dicts, lists, strings, numbers, booleans and None, as UTF-8.

    Raises:
        CanonicalError: see the class.
    """
    try:
        return _text(value).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise CanonicalError("a lone surrogate, or too many levels") from error


def _text(value: Any) -> str:
    match value:
        case str():
            return encode_basestring(value)
        case dict():
            return "{" + ",".join([f"{encode_basestring(name)}:{_text(value[name])}" for name in _sorted(value)]) + "}"
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _number(value)
        case list() | tuple():
            return "[" + ",".join([_text(item) for item in value]) + "]"
    raise CanonicalError(f"{type(value).__name__} is no JSON")


def _sorted(names: dict[str, Any]) -> list[str]:
    if all(map(str.isascii, names)):
        return sorted(names)
    return sorted(names, key=lambda name: name.encode("utf-16-be"))


def _number(value: float) -> str:
    """ECMAScript's `Number::toString`."""
    if isinstance(value, int) and abs(value) <= _EXACT_MAX:
        return str(value)
    try:
        double = float(value)
    except OverflowError:
        return "null"
    if not math.isfinite(double):
        return "null"
    if double == 0:
        return "0"
    sign, all_digits, exponent = Decimal(repr(double)).as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - finite
    digits = "".join(map(str, all_digits)).rstrip("0")
    point = len(all_digits) + exponent
    return ("-" if sign else "") + _placed(digits, point)


def _placed(digits: str, point: int) -> str:
    """Digits with the decimal point after `point` of them."""
    if len(digits) <= point <= _PLAIN_DIGITS_MAX:
        return digits + "0" * (point - len(digits))
    if 0 < point <= _PLAIN_DIGITS_MAX:
        return f"{digits[:point]}.{digits[point:]}"
    if -_PLAIN_ZEROS_MAX < point <= 0:
        return f"0.{'0' * -point}{digits}"
    exponent = point - 1
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{'+' if exponent >= 0 else '-'}{abs(exponent)}"
