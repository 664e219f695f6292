"""Replies of every RPC outside the bytes path: a value, or an error code."""

from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from contracts.errors import ErrorCode, HubError

T = TypeVar("T", bound=BaseModel)
PRINTABLE: Final = r"^[ -~]*$"
"""Pattern of texts that are stored as they come: printable ASCII, no NUL among it."""
WITHOUT_NUL: Final = r"^[^\x00]*$"
"""Pattern of texts in any language that are stored as they come."""


class Message(BaseModel):
    """Base of RPC requests and replies: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(Message):
    """Why a request was refused."""

    code: ErrorCode
    message: str
    param: str | None = None


class Reply(Message, Generic[T]):
    """Exactly one of the two is set."""

    ok: T | None = None
    error: Problem | None = None

    def unwrap(self) -> T:
        """The value.

        Raises:
            HubError: the service refused.
        """
        if self.error is not None:
            raise HubError(self.error.code, self.error.message, param=self.error.param)
        if self.ok is None:
            raise HubError(ErrorCode.INTERNAL_ERROR, "The reply was empty.")
        return self.ok


class Empty(Message):
    """Nothing to say."""
