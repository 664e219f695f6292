"""A short round of the campaign, for every run of the tests: each part dies once under load."""

from pathlib import Path

import pytest

from campaign.main import Plan, campaign
from contracts.permissions import GATEWAY


@pytest.mark.timeout(300)  # it has a dozen processes to start again
async def test_every_part_is_killed_under_load_and_every_book_agrees(
    tmp_path: Path, template_folder: Path | None
) -> None:
    plan = Plan(
        seed=4, seconds=0, folder=tmp_path, clients=8, pause_s=0.3, down_s=0.3, between_s=0.2, hands=3,
        counts={GATEWAY: 2}, rich=3,
    )  # fmt: skip
    outcome = await campaign(plan, tmp_path / "campaign", template_folder)
    assert not outcome.verdict.violations, f"{outcome.table}\njournals: {tmp_path}"
    assert len(outcome.kills.counts) == 8, "everything died"
    assert outcome.verdict.figures["calls paid"] > 0
