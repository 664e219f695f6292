"""A provider's bill: read whatever its columns are called, compared with what was served."""

import csv
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_local.commands import bill as bills
from hub_local.commands.session import UsageError

OPENAI = """start_time_iso,model,num_model_requests,input_tokens,input_cached_tokens,output_tokens
2026-11-24T00:00:00+00:00,gpt-4o,2,100,10,50
2026-11-24T00:00:00+00:00,gpt-4o,1,7,0,3
2026-11-25T00:00:00+00:00,gpt-4o,1,1,0,1
"""
ANTHROPIC = """"Model Version","Usage Date (UTC)","Usage Output Tokens"
claude-sonnet-4,2026-11-24,"1,234"
"""
DAY = date(2026, 11, 24)


def test_rows_of_one_day_and_model_are_added_up() -> None:
    bill = bills.parsed(OPENAI.splitlines())
    assert bill.counts == ("requests", "input_tokens", "cached_tokens", "output_tokens")
    assert bill.rows[(DAY, "gpt-4o")] == {
        "requests": 3, "input_tokens": 107, "cached_tokens": 10, "output_tokens": 53
    }  # fmt: skip
    assert len(bill.rows) == 2


def test_columns_are_found_by_other_names_and_absent_counts_are_not_compared() -> None:
    bill = bills.parsed(ANTHROPIC.splitlines())
    assert (bill.counts, bill.rows) == (("output_tokens",), {(DAY, "claude-sonnet-4"): {"output_tokens": 1234}})


def test_a_time_in_seconds_or_with_an_offset_is_its_day_in_utc() -> None:
    lines = ["start_time,model,requests", "1764028799,m,1", "2025-11-25T01:30:00+02:00,m,1", "2025-11-24,m,1"]
    assert bills.parsed(lines).rows == {(date(2025, 11, 24), "m"): {"requests": 3}}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "among: nothing"),
        (["day,model"], "at least one of requests"),
        (["day,model,requests", "2026-13-01,m,1"], "line 2: '2026-13-01' is no day"),
        (["day,model,requests", "2026-01-01,m,-1"], "line 2: '-1' is no count"),
        (["day,model,requests", "2026-01-01,m,1.5"], "is no count"),
        (["day,model,requests", "2026-01-01,m,NaN"], "is no count"),
        (["day,model,requests", "99999999999999999,m,1"], "is no time"),
    ],
)
def test_what_is_no_bill_is_refused_with_its_line(lines: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bills.parsed(lines)


@given(st.lists(st.text(), max_size=6))
def test_no_text_breaks_the_reader(lines: list[str]) -> None:
    try:
        bills.parsed(lines)
    except (UsageError, csv.Error):
        return


def test_a_file_that_is_none_ends_with_the_given_code(tmp_path: Path) -> None:
    (tmp_path / "bill.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("bill.csv", "absent.csv"):
        with pytest.raises(SystemExit) as ended:
            bills.read(tmp_path / name, failure=2)
        assert ended.value.code == 2


def test_both_sides_of_every_day_and_model_are_compared_within_the_tolerance() -> None:
    bill = bills.Bill(("requests", "input_tokens"), {(DAY, "m"): {"requests": 100, "input_tokens": 1000}})
    served = {(DAY, "m"): {"requests": 99, "input_tokens": 989}, (DAY, "n"): {"requests": 1, "input_tokens": 0}}
    rows = bills.compared(bill, served, Decimal("0.01"))
    assert rows == [
        ("2026-11-24", "m", "requests", 100, 99, False),
        ("2026-11-24", "m", "input_tokens", 1000, 989, True),
        ("2026-11-24", "n", "requests", 0, 1, True),
        ("2026-11-24", "n", "input_tokens", 0, 0, False),
    ]


@pytest.mark.parametrize(("words", "share"), [("1%", "0.01"), ("0.5 %", "0.005"), ("0.02", "0.02"), ("0", "0")])
def test_a_tolerance_is_a_share_or_a_percentage(words: str, share: str) -> None:
    assert bills._as_share(words) == Decimal(share)


@pytest.mark.parametrize("words", ["", "x", "-1%", "100%", "NaN", "1e9"])
def test_a_tolerance_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(UsageError):
        bills._as_share(words)
