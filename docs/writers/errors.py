"""`errors.md`: the closed set of error codes."""

from typing import Final

from contracts.errors import ERRORS

_INTRODUCTION: Final = (
    "A code is part of the API, its wording is not. `error.code` in an error body, in an error event of a stream and in"
    " a call's record is one of these. *Retry*: whether the same request can succeed later; where it says no, the"
    " answer forbids SDKs to repeat it (`x-should-retry: false`)."
)


def text() -> str:
    """The table of codes."""
    rows = [
        f"| `{code}` | {row.status} | `{row.type}` | {'yes' if row.retryable else 'no'} | {row.meaning} |"
        for code, row in ERRORS.items()
    ]
    return "\n".join(
        [
            "# Error codes",
            "",
            _INTRODUCTION,
            "",
            "| code | status | `error.type` | retry | meaning |",
            "|---|--:|---|---|---|",
            *rows,
            "",
        ]
    )
