"""Patterns over `provider/model`: `*` matches any run of characters, slashes and nothing included."""

import re
from typing import Final

WILDCARDS_MAX: Final = 4
_PATTERN: Final = re.compile(r"[a-z0-9*][a-z0-9_*-]{0,39}/[!-~]{1,150}")


def is_pattern(text: str) -> bool:
    """Whether a text can be a pattern: a provider part in lower case, a slash, a model part in printable ASCII."""
    return _PATTERN.fullmatch(text) is not None and text.count("*") <= WILDCARDS_MAX


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers the whole of `name`; letters count as they are. Linear in both."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def specificity(pattern: str) -> tuple[int, int, str]:
    """Sort key, most specific first: the longest literal, then fewer wildcards, then the text itself."""
    wildcards = pattern.count("*")
    return wildcards - len(pattern), wildcards, pattern
