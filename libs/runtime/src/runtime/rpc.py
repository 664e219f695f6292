"""RPC outside the bytes path: FastStream subscribers that answer with a value or an error code, and their callers."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from faststream.nats import NatsBroker
from nats.errors import Error as NatsError
from pydantic import BaseModel, ValidationError

from contracts import subjects
from contracts.errors import ErrorCode, HubError
from contracts.rpc.envelope import Problem, Reply
from runtime.bus import Bus
from runtime.postgres import UNKNOWN_OUTCOME

_log = structlog.get_logger("rpc")
Q = TypeVar("Q", bound=BaseModel)
A = TypeVar("A", bound=BaseModel)


def broker(url: str, *, name: str, inbox_prefix: str) -> NatsBroker:
    """A FastStream broker that reconnects for ever; subscribers are added before it starts."""
    return NatsBroker(
        url,
        name=name,
        inbox_prefix=f"{inbox_prefix}.rpc".encode(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=5,
        max_outstanding_pings=2,
        graceful_timeout=10.0,
        logger=None,
        specification_url="nats://127.0.0.1:4222",
    )


def answer(
    on: NatsBroker, service: str, method: str, request: type[Q], _reply: type[A], handler: Callable[[Q], Awaitable[A]]
) -> None:
    """Serve one method: `handler` returns the reply, or raises `HubError` with the code that the caller gets.

    A request that does not validate is answered with `invalid_request`; a database that is away with
    `service_unavailable`; anything else is a bug: logged, answered with `internal_error`.
    """

    @on.subscriber(subjects.rpc(service, method), queue=service, decoder=_undecoded, title=f"{service} {method}")
    async def serve(body: bytes) -> bytes:
        try:
            ok = await handler(request.model_validate_json(body))
            return b'{"ok":%s}' % ok.model_dump_json().encode()
        except HubError as error:
            return _problem(error.code, error.message, error.param)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return _problem(ErrorCode.INVALID_REQUEST, first["msg"], ".".join(str(part) for part in first["loc"]))
        except UNKNOWN_OUTCOME as error:
            _log.warning("rpc failed", method=method, error=type(error).__name__)
            return _problem(ErrorCode.SERVICE_UNAVAILABLE, "The database did not answer; try again.")
        except Exception:  # noqa: BLE001 - the edge: a caller always gets an answer
            _log.exception("rpc failed", method=method)
            return _problem(ErrorCode.INTERNAL_ERROR, f"{service} failed to answer {method}; its log says why.")


async def ask(bus: Bus, service: str, method: str, request: BaseModel, reply: type[A], timeout_s: float = 5.0) -> A:
    """Ask a service and unwrap its reply.

    Raises:
        HubError: the service's own refusal, or `service_unavailable` when nobody answers in time.
    """
    subject = subjects.rpc(service, method)
    try:
        raw = await bus.call(subject, request.model_dump_json().encode(), timeout_s)
    except (TimeoutError, NatsError) as error:
        raise HubError(
            ErrorCode.SERVICE_UNAVAILABLE, f"{service} does not answer; try again shortly.", retry_after_s=1
        ) from error
    return Reply[reply].model_validate_json(raw).unwrap()  # type: ignore[valid-type]


def _problem(code: ErrorCode, message: str, param: str | None = None) -> bytes:
    return b'{"error":%s}' % Problem(code=code, message=message, param=param).model_dump_json().encode()


async def _undecoded(message: Any) -> bytes:
    """The body as it came; FastStream's default decoder would turn JSON into a dict first."""
    body: bytes = message.body
    return body
