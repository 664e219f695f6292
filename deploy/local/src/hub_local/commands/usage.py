"""`hub usage tail`: usage events as they are recorded."""

import json
from typing import Annotated, Any

from cyclopts import Parameter
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy

from contracts import streams, subjects
from hub_local.commands.session import connected, run


def tail(
    *,
    from_start: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    count: int | None = None,
) -> None:
    """Print a line for each usage event, until Ctrl-C.

    Args:
        from_start: begin with the oldest event that is kept, not with the next one.
        as_json: the CloudEvents as they are.
        count: end after so many.
    """
    run(_tail(from_start=from_start, as_json=as_json, count=count))


async def _tail(*, from_start: bool, as_json: bool, count: int | None) -> None:
    policy = DeliverPolicy.ALL if from_start else DeliverPolicy.NEW
    async with connected() as bus:
        subscription = await bus.jetstream().subscribe(
            f"{subjects.USAGE_RECORDED}.*",
            stream=streams.USAGE.name,
            ordered_consumer=True,
            config=ConsumerConfig(deliver_policy=policy),
        )
        seen = 0
        while count is None or seen < count:
            try:
                message = await subscription.next_msg(timeout=60)
            except (TimeoutError, NatsTimeoutError):
                continue  # nothing happened for a minute
            seen += 1
            print(message.data.decode() if as_json else _line(json.loads(message.data)), flush=True)


def _line(event: dict[str, Any]) -> str:
    data = event["data"]
    usage = data.get("usage", {})
    tokens = f"{usage.get('input_tokens', 0)}+{usage.get('output_tokens', 0)} tokens"
    state = data["state"] if data["state"] == "failed" else data.get("outcome", "")
    return (
        f"{event['time']}  {event['subject']}  #{int(event['sequence'])}  {data['model']}  {state}"
        f"  {tokens}  {data['credits']} credits  {data['call_id']}"
    )
