"""`errors.md`: the closed set of error codes."""

from typing import Final

from contracts.errors import ERRORS, Retry

_INTRODUCTION: Final = (
    "A code is part of the API, its wording is not. `error.code` in an error body, in an error event of a stream and in"
    " a call's record is one of these. *Retry*: whether the same request can succeed later, with nothing charged for"
    " this one. Where it says no, the answer forbids SDKs to repeat it (`x-should-retry: false`); where it says *with a"
    " key*, it does so unless the request had an `Idempotency-Key` or only reads: the first call may have been charged."
)

_RETRY: Final = {Retry.YES: "yes", Retry.NO: "no", Retry.WITH_KEY: "with a key"}


def text() -> str:
    """The table of codes."""
    rows = [
        f"| `{code}` | {row.status} | `{row.type}` | {_RETRY[row.retry]} | {row.meaning} |"
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
