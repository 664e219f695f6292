"""What a campaign that failed leaves behind: every journal, every table, every log, and the seed."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from faults.clients import Payer, Told

from campaign.kills import Kill
from campaign.stage import KIT, Stage

_TABLES: Final = (
    "metering.account", "metering.model_call", "metering.attempt", "metering.ledger", "metering.outbox",
    "metering.parked", "metering.late_completion", "metering.usage_sent", "metering.payment_account", "audit.ended",
    "audit.unbalanced",
)  # fmt: skip
_TOLD: Final = [field.name for field in fields(Told) if field.name not in {"began", "lines"}]


async def write(folder: Path, stage: Stage, summary: Mapping[str, Any], kills: Iterable[Kill]) -> None:
    """Write them, one file each."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, default=str))
    _lines(folder / "faults.jsonl", (asdict(kill) for kill in kills))
    _lines(folder / "clients.jsonl", (line for payer in stage.scene.payers for line in _told(payer)))
    _lines(folder / "provider.jsonl", (_received(received) for received in stage.scene.provider.journal))
    shutil.copy(stage.journal, folder / "payment-kit.jsonl")
    for table in _TABLES:
        rows = await stage.scene.hub.fetch(f"select to_jsonb(t)::text as row from {table} t")  # noqa: S608 - our names
        (folder / f"{table}.jsonl").write_text("".join(f"{row['row']}\n" for row in rows))
    for name in stage.scene.hub.processes.names:
        (folder / f"{name}.log").write_text(stage.scene.hub.log(name))
    (folder / f"{KIT}.log").write_text(stage.processes.log(KIT))


def _told(payer: Payer) -> Iterable[dict[str, Any]]:
    for told in payer.journal:
        yield {"account": payer.account, **{name: getattr(told, name) for name in _TOLD}}


def _received(received: Any) -> dict[str, Any]:
    return {
        "call_id": received.call_id,
        "attempt": received.attempt,
        "chunks_sent": received.chunks_sent,
        "finished": received.finished,
        "cut": received.cut,
        "gone": received.gone_at is not None,
        "sent": bytes(received.sent).decode(errors="replace"),
    }


def _lines(file: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
