"""Prices of known models from the package genai-prices: offline, read once by a short-lived child process.

The package's tables take 80 MB and most of a second; a child gives them back to the machine when it has printed the
few rows that matter. Its updater, which would download prices, is never started. What the rates here leave out is
left unpriced rather than guessed: models with prices for audio, images or per-call searches, prices by time of day,
and names that a pattern cannot express.
"""

import asyncio
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from contracts.rpc.catalog import Values

if TYPE_CHECKING:
    from genai_prices import types

_DEADLINE_S: Final = 30.0
_ALIASES: Final = {"xai": "x-ai", "gemini": "google"}
"""Our provider name → the package's, where they differ."""
_UNITS: Final = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
}
"""Our unit → the package's."""
_OTHER_UNITS: Final = ("audio", "image", "video", "chars", "hours", "seconds", "requests")
_OTHER_NAMES: Final = re.compile(r"search|audio|image|realtime|tts|transcribe|moderation")
"""Models that also charge for something else than text tokens, whether or not the package says so; `…-search-…`
ones charge each call for a search."""
_EMBEDDING: Final = re.compile(r"embed")
"""Models that read and write nothing: they have an input price only, and no place among the chat models."""
_LISTED: Final = {
    "openai": re.compile(r"(?:gpt-(?!oss|live|35-)|chatgpt-|o\d)(?!.*(?:instruct|codex|-pro\b|-high|:|\.ft-))"),
    "anthropic": re.compile(r"claude-(?!v\d|2)"),
}
"""Models of the chat endpoint, of all that have a price."""
_DATED: Final = {
    "anthropic": (
        "claude-3-haiku-20240307",
        "claude-3-5-haiku-20241022",
        "claude-3-5-sonnet-20240620",
        "claude-3-5-sonnet-20241022",
        "claude-3-7-sonnet-20250219",
        "claude-3-opus-20240229",
        "claude-haiku-4-5-20251001",
        "claude-opus-4-20250514",
        "claude-opus-4-1-20250805",
        "claude-opus-4-5-20251101",
        "claude-sonnet-4-20250514",
        "claude-sonnet-4-5-20250929",
    )
}
"""Names that the vendor documents and the package knows only as the beginning of a name."""
_LITERAL: Final = re.compile(r"[a-z0-9@:._/-]+")
_DIGITS: Final = {r"\d{8}": "20*", r"\d{4}-\d{2}-\d{2}": "20*-*-*"}


class PackageRate(Values):
    """US dollars per token for the models of one pattern, as plain decimal strings."""

    pattern: str


class PackagePrices(BaseModel):
    """What the package says at one moment about the providers asked for."""

    model_config = ConfigDict(frozen=True)

    name: str = "genai-prices"
    version: str = ""
    rates: tuple[PackageRate, ...] = ()
    models: dict[str, tuple[str, ...]] = {}
    """Chat models of a provider, by our name of it."""
    changes_at: datetime | None = None
    """When a dated price begins next: ask again then."""


class PackageError(Exception):
    """The child process gave no prices."""


async def read(providers: Sequence[str]) -> PackagePrices:
    """Prices now for providers that the package knows by name; nothing is started when there are none to ask for.

    Args:
        providers: our names.

    Raises:
        PackageError: the child failed or did not end in time.
    """
    if not providers:
        return PackagePrices()
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTHON") or name in {"PATH", "HOME"}}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, *providers, env=kept, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(), _DEADLINE_S)
    except TimeoutError as error:
        child.kill()
        await child.wait()
        raise PackageError(f"no prices within {_DEADLINE_S:.0f} s") from error
    if child.returncode != 0:
        raise PackageError(f"the price reader ended with code {child.returncode}")
    return await asyncio.to_thread(PackagePrices.model_validate_json, output)  # calls go on meanwhile


def resolve(providers: Iterable[str], now: datetime) -> PackagePrices:
    """The same in this process; imports the package's tables."""
    from genai_prices import __version__, data_snapshot  # noqa: PLC0415 - 80 MB that only the child may hold

    known = {provider.id: provider for provider in data_snapshot.get_snapshot().providers}
    rates: dict[str, PackageRate] = {}
    models: dict[str, tuple[str, ...]] = {}
    starts: list[datetime] = []
    for name in providers:
        provider = known.get(_ALIASES.get(name, name))
        if provider is None:
            continue
        priced = [model for model in provider.models if _charges_tokens_only(model)]
        starts += [start for model in priced for start in _starts(model)]
        for model in priced:
            price = model.get_prices(now)
            for pattern in _patterns(model.match):
                if _OTHER_NAMES.search(pattern):
                    continue
                # The package takes the first model that matches, so an earlier pattern stays.
                rates.setdefault(f"{name}/{pattern}", _rate(f"{name}/{pattern}", price))
        models[name] = tuple(_listed(name, priced))
    changes_at = min((start for start in starts if start > now), default=None)
    return PackagePrices(version=__version__, rates=tuple(rates.values()), models=models, changes_at=changes_at)


def _prices(model: "types.ModelInfo") -> "list[types.ModelPrice]":
    return [each.prices for each in model.prices] if isinstance(model.prices, list) else [model.prices]


def _charges_tokens_only(model: "types.ModelInfo") -> bool:
    """Whether every price of a model is per text token, and none depends on the hour."""
    if any(hasattr(each, "start_time") for each in _constraints(model)):
        return False
    for price in _prices(model):
        if price.input_mtok is None or (price.output_mtok is None and not _EMBEDDING.search(model.id)):
            return False
        if any(unit in key for key, value in vars(price).items() if value is not None for unit in _OTHER_UNITS):
            return False
    return True


def _constraints(model: "types.ModelInfo") -> "list[types.StartDateConstraint | types.TimeOfDateConstraint]":
    if not isinstance(model.prices, list):
        return []
    return [each.constraint for each in model.prices if each.constraint is not None]


def _starts(model: "types.ModelInfo") -> Iterator[datetime]:
    for constraint in _constraints(model):
        if hasattr(constraint, "start_date"):
            yield datetime.combine(constraint.start_date, time(), UTC)


def _rate(pattern: str, price: "types.ModelPrice") -> PackageRate:
    found = {unit: getattr(price, key) for unit, key in _UNITS.items()}
    tiered = [given for given in found.values() if given is not None and not isinstance(given, Decimal)]
    borders = sorted({tier.start for given in tiered for tier in given.tiers})
    return PackageRate.model_validate(
        {
            "pattern": pattern,
            **_per_token(found, 0),
            "tiers": [{"above": border, **_per_token(found, border)} for border in borders],
        }
    )


def _per_token(found: "dict[str, Decimal | types.TieredPrices | None]", above: int) -> dict[str, str]:
    """USD per million → USD per token, exactly, for prompts longer than `above`."""
    texts = {"output": "0"}  # of an embedding
    for unit, price in found.items():
        if price is not None:
            texts[unit] = format(_at_length(price, above).scaleb(-6).normalize(), "f")
    return texts


def _at_length(price: "Decimal | types.TieredPrices", above: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    longer: Decimal = next((tier.price for tier in reversed(price.tiers) if tier.start <= above), price.base)
    return longer


def _patterns(match: "types.MatchLogic") -> Iterator[str]:
    """Patterns for the names that a clause accepts; none for what they cannot express."""
    from genai_prices import types  # noqa: PLC0415 - see `resolve`

    match match:
        case types.ClauseOr():
            for clause in match.or_:
                yield from _patterns(clause)
        case types.ClauseEquals() if _LITERAL.fullmatch(match.equals):
            yield match.equals
        case types.ClauseStartsWith() if _LITERAL.fullmatch(match.starts_with):
            yield f"{match.starts_with}*"
        case types.ClauseRegex():
            yield from _dated(match.regex)
        case _:
            return


def _dated(regex: str) -> Iterator[str]:
    r"""`^name-\d{8}$` and its like: a name with a date of this century behind it."""
    for digits, wildcard in _DIGITS.items():
        body = regex.removeprefix("^").removesuffix("$").removesuffix(digits)
        if regex != f"^{body}{digits}$":
            continue
        for separator in ("-", "@") if body.endswith("[-@]") else ("",):
            literal = body.removesuffix("[-@]").replace("\\.", ".") + separator
            if _LITERAL.fullmatch(literal):
                yield literal + wildcard


def _listed(name: str, priced: "Iterable[types.ModelInfo]") -> Iterator[str]:
    """Names of chat models: the package's own, and the dated forms of it that are spelt out."""
    wanted = _LISTED.get(name)
    names: dict[str, None] = {}
    for model in priced:
        for literal in (model.id, *_patterns(model.match)):
            belongs = literal == model.id or literal.startswith(f"{model.id}-")
            if not belongs or "*" in literal or _OTHER_NAMES.search(literal) or _EMBEDDING.search(literal):
                continue
            if wanted is None or wanted.match(literal):
                names[literal] = None
    yield from sorted({**names, **dict.fromkeys(_DATED.get(name, ()))})


def main() -> None:
    """Print the prices of the providers named by the arguments."""
    sys.stdout.write(resolve(sys.argv[1:], datetime.now(UTC)).model_dump_json() + "\n")


if __name__ == "__main__":
    main()
