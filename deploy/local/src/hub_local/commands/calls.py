"""`hub calls`: what became of calls."""

from contracts.money import to_text
from contracts.rpc import metering, model_calls
from hub_local.commands import show as out
from hub_local.commands.session import ask, run


def list_calls(*, account: str | None = None, limit: int = 20, before: str | None = None) -> None:
    """List calls, newest first.

    Args:
        account: only this account's.
        limit: how many, at most 500.
        before: a call id: only older ones.
    """

    async def asked() -> model_calls.CallPage:
        wanted = model_calls.CallList(account=account, limit=limit, before=before)
        return await ask(metering.SERVICE, model_calls.CALL_LIST, wanted, model_calls.CallPage)

    page = run(asked())
    out.table(
        ("call", "created", "state", "model", "provider", "tokens", "credits", "seconds", "error"),
        [
            (
                call.call_id, call.created_at, call.state, call.model, call.provider or "", _tokens(call),
                "" if call.credits is None else to_text(call.credits), call.duration_s or "", call.error_code or "",
            )
            for call in page.calls
        ],
    )  # fmt: skip


def show(call_id: str) -> None:
    """Show all that is known of one call.

    Args:
        call_id: as `hub calls` or the header `x-call-id` has it.
    """
    wanted = model_calls.CallGet(call_id=call_id)
    call = run(ask(metering.SERVICE, model_calls.CALL_GET, wanted, model_calls.CallView))
    fields = call.model_dump(mode="json", exclude={"attempts"})
    out.record({name.replace("_", " "): "" if value is None else value for name, value in fields.items()})
    if call.attempts:
        print()
        out.table(
            ("attempt", "provider", "model", "credential", "status", "error", "started ms", "duration ms"),
            [
                (a.number, a.provider, a.model, a.credential, a.status or "", a.error, a.started_ms, a.duration_ms)
                for a in call.attempts
            ],
        )


def _tokens(call: model_calls.CallView) -> str:
    counts = [value for value in (call.usage or {}).values() if isinstance(value, int)]
    return str(sum(counts)) if counts else ""
