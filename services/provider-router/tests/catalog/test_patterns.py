"""Patterns over `provider/model`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_router.catalog.patterns import is_pattern, matches, specificity

TEXT = st.text("ab/*.", max_size=12)


@given(TEXT, st.text("ab/.", max_size=12))
def test_a_pattern_matches_what_the_same_regular_expression_matches(pattern: str, name: str) -> None:
    regex = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert matches(pattern, name) is (re.fullmatch(regex, name, re.DOTALL) is not None)


@given(st.lists(st.text("ab/.", max_size=4), min_size=2, max_size=5), st.lists(st.text("ab/.", max_size=4), min_size=4))
def test_a_wildcard_stands_for_any_run_of_characters(parts: list[str], runs: list[str]) -> None:
    name = "".join(part + run for part, run in zip(parts, runs, strict=False))
    if len(runs) >= len(parts):
        name = "".join(part + run for part, run in zip(parts[:-1], runs, strict=False)) + parts[-1]
        assert matches("*".join(parts), name)
    else:
        assert matches("*".join([*parts[: len(runs)], ""]), name)


@pytest.mark.parametrize("text", ["openai/*", "*/gpt-4o", "my-llm/Qwen/Qwen3-32B", "a_b/x:y@z", "demo/echo"])
def test_a_pattern_is_a_provider_and_a_model(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["gpt-4o", "OpenAI/x", "a/", "/x", "a/x y", "a/é", "a/x\n", "a/" + "x" * 151, "a/*b*c*d*e*f", " a/x"]
)
def test_what_no_model_can_match_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


def test_the_longest_literal_is_the_most_specific() -> None:
    patterns = ["*/*", "openai/*", "openai/gpt-4o*", "openai/gpt-4o-mini", "openai/gpt-*-mini"]
    assert sorted(patterns, key=specificity) == [
        "openai/gpt-4o-mini",
        "openai/gpt-*-mini",
        "openai/gpt-4o*",
        "openai/*",
        "*/*",
    ]
