"""Payment Kit over HTTP: every call signed by the application, every answer looked at with suspicion.

Requests are proven by the vectors. Answers are not recorded anywhere, so each form that is plausible is told apart:
JSON or not, redirects, errors as text, as an object or as a list.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from metering.payment_kit.connections import Connections, NoAnswerError, NotConnectedError, Received
from runtime.component_call import AppKey, signed_headers

_HEADERS: Final = {
    "accept": "application/json, text/plain, */*",
    "user-agent": "aigne-hub",
    "accept-encoding": "identity",
    "connection": "keep-alive",
}
_ERROR_CHARS: Final = 300
_RETRY_AFTER_MAX_S: Final = 3600


class PaymentKitError(Exception):
    """A call that did not bring what was asked for.

    Attributes:
        status: HTTP status, 0 when no answer came.
        retry_after_s: what Payment Kit asked for, 0 = nothing.
        was_sent: the request may have arrived.
        transient: asking again later can help.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        detail: str = "",
        retry_after_s: float = 0,
        was_sent: bool = True,
        transient: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s
        self.was_sent = was_sent
        self.transient = transient


class Answer(Received):
    """What came back, whatever it is."""

    @cached_property
    def document(self) -> Any:
        """The parsed body; None when it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Request:
    """A signed call, ready to be sent."""

    method: str
    target: str
    """Path and query, below the URL's path."""
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class PaymentKit:
    """One Payment Kit, as one application."""

    url: str
    key: AppKey
    component_did: str
    livemode: bool
    http: Connections
    clock: Callable[[], float] = field(default=time.time)

    def request(
        self, method: str, path: str, query: Mapping[str, str | int | None] | None = None, body: Any = None
    ) -> Request:
        """The request of a call, signed for this second.

        Args:
            method: upper case.
            path: begins with `/api/`; its parts are encoded, see `part`.
            query: members that are None are left out.
            body: sent as JSON, also by a GET; None = none.
        """
        fields = [(name, str(value)) for name, value in (query or {}).items() if value is not None]
        fields.append(("livemode", "true" if self.livemode else "false"))
        target = f"{urlsplit(self.url).path}{path}?{urlencode(fields)}"
        headers = dict(_HEADERS)
        content = b""
        if body is not None:
            content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            headers["content-type"] = "application/json"
        elif method in {"POST", "PUT"}:
            headers["content-type"] = "application/x-www-form-urlencoded"
        headers |= signed_headers(self.key, self.component_did, method, target, body, int(self.clock()))
        return Request(method, target, headers, content)

    async def send(
        self, method: str, path: str, query: Mapping[str, str | int | None] | None = None, body: Any = None
    ) -> Answer:
        """Whatever is answered; redirects are not followed.

        Raises:
            PaymentKitError: `unreachable`, or `silent` (it may have arrived, and no whole answer came).
        """
        request = self.request(method, path, query, body)
        try:
            received = await self.http.exchange(request.method, request.target, request.headers, request.body)
        except NotConnectedError as error:
            raise PaymentKitError("unreachable", detail=str(error), was_sent=False, transient=True) from error
        except NoAnswerError as error:
            raise PaymentKitError("silent", detail=str(error), transient=True) from error
        return Answer(received.status, received.headers, received.body)

    async def ask(
        self, method: str, path: str, query: Mapping[str, str | int | None] | None = None, body: Any = None
    ) -> Any:
        """The JSON document of a call that succeeds.

        Raises:
            PaymentKitError: no answer, an error, a redirect, or no JSON.
        """
        answer = await self.send(method, path, query, body)
        refused = refusal(answer)
        if refused is not None:
            raise refused
        return answer.document


def refusal(answer: Answer) -> PaymentKitError | None:
    """Why an answer is none; None when it is a document of a call that succeeded."""
    status = answer.status
    if 200 <= status < 300:  # noqa: PLR2004
        document = answer.document
        if document is None and answer.body.strip() != b"null":
            return PaymentKitError("no_json", status=status)
        if isinstance(document, dict) and "error" in document and "id" not in document:
            return PaymentKitError("error_in_success", status=status, detail=error_text(answer))
        return None
    if 300 <= status < 400:  # noqa: PLR2004
        return PaymentKitError("redirect", status=status)
    transient = status in {408, 425, 429} or status >= 500  # noqa: PLR2004
    return PaymentKitError(
        "refused", status=status, detail=error_text(answer), retry_after_s=_retry_after(answer), transient=transient
    )


def error_text(answer: Answer) -> str:
    """The words of an error in any shape: text, `{error}`, `{error: {message}}`, `{message}`, `{errors: […]}`."""
    document = answer.document
    if document is None:
        text = answer.body[:_ERROR_CHARS].decode("utf-8", "replace")
        return "" if "<" in text else text  # a page says nothing
    return " ".join(_words(document))[:_ERROR_CHARS]


def part(text: str) -> str:
    """One segment of a path."""
    return quote(text, safe="")


@contextmanager
def opened(
    url: str, key: AppKey, component_did: str, *, livemode: bool, connections: int, timeout_s: float
) -> Iterator[PaymentKit]:
    """A client; connections are made when first needed."""
    http = Connections(url, asyncio.Semaphore(connections), timeout_s)
    try:
        yield PaymentKit(url, key, component_did, livemode, http)
    finally:
        http.close()


def _words(node: Any) -> list[str]:
    """Strings of an error document, at most three levels down, the telling members only."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, list):
        return [word for item in node[:10] for word in _words(item)]
    if isinstance(node, dict):
        telling = ("error", "errors", "message", "msg", "code", "type", "name", "path", "field", "detail")
        return [word for name in telling if name in node for word in _words(node[name])]
    return []


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return min(int(text), _RETRY_AFTER_MAX_S) if text.isascii() and text.isdigit() else 0
