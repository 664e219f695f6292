"""What a router does before it takes its first call."""

from pathlib import Path

import pytest
from rig.catalogs import CatalogRig

from contracts.ids import new_process_id
from provider_router import tokens
from provider_router.app import provider_router
from provider_router.intake import Intake


@pytest.mark.parametrize(("at_start", "steps"), [(True, ["read", "listen"]), (False, ["listen"])])
async def test_a_tokenizer_read_at_start_is_there_before_any_call(
    catalogs: CatalogRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_start: bool, steps: list[str]
) -> None:
    done: list[str] = []
    listen = Intake.start

    async def listened(intake: Intake) -> None:
        done.append("listen")
        await listen(intake)

    monkeypatch.setattr(Intake, "start", listened)

    def read(_text: str) -> int:
        done.append("read")
        return 1

    monkeypatch.setattr(tokens, "count_text", read)
    settings = catalogs.settings(tokenizer_at_start=at_start, spool_dir=tmp_path, drain_s=1)
    async with provider_router(settings, new_process_id("provider-router")):
        assert done == steps
