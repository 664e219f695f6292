"""What `hub reconcile` says and how it ends when a side of the books could not be read."""

import pytest

from contracts.rpc.reconcile import ReconcileReport
from hub_local.commands import reconcile as command


def report(differences: int, not_compared: str) -> ReconcileReport:
    comparison = {
        "check": "payment_kit", "left": "meter events sent", "left_count": 2, "left_sum": "1.0000000000",
        "right": "events at Payment Kit", "right_count": 0, "right_sum": "0.0000000000", "differences": differences,
        "not_compared": not_compared,
    }  # fmt: skip
    return ReconcileReport.model_validate({
        "run_id": "r1", "scope": "all", "state": "done", "progress": "", "error": "", "started_at": "",
        "finished_at": None, "comparisons": (comparison,), "differences": differences, "accepted": 0, "page": (),
        "next_after": None,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "not_compared", "code"),
    [(0, "", 0), (0, "Payment Kit: unreachable", 2), (3, "Payment Kit: unreachable", 1), (3, "", 1)],
)
def test_what_was_not_compared_is_no_agreement(
    differences: int,
    not_compared: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "_compared", lambda _scope: (report(differences, not_compared), []))
    monkeypatch.setattr(command, "run", lambda found, failure: found)  # noqa: ARG005 - nobody is asked
    with pytest.raises(SystemExit) as ended:
        command.reconcile()
    assert ended.value.code == code
    said = capsys.readouterr().out
    assert ("not compared to the end: Payment Kit: unreachable" in said) == bool(not_compared)
    assert ("\tnot compared\n" in said) == bool(not_compared)
