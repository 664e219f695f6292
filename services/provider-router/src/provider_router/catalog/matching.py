"""Which price of the package belongs to a rate of ours, although the names differ."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from contracts.rpc.catalog import Values
from provider_router.catalog.costs import values_of
from provider_router.catalog.package import PackagePrices, PackageRate
from provider_router.catalog.patterns import matches, specificity

VENDORS: Final = ("openai", "anthropic", "google", "xai", "deepseek")
"""Who makes models; whoever resells one and has no price of its own inherits theirs, in this order."""
_GEMINI: Final = re.compile(r"gemini-([a-z][a-z-]*?)-(\d+(?:\.\d+)?)(-.*)?")
_DATE: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class Cost(NamedTuple):
    """Unit costs and where they come from."""

    values: Values
    source: str


class Costs:
    """The package's prices, made searchable."""

    def __init__(self, package: PackagePrices) -> None:
        self._source = f"{package.name} {package.version}".rstrip()
        self._known = frozenset(package.models)
        self._exact = {rate.pattern: rate for rate in package.rates}
        self._patterns: dict[str, list[PackageRate]] = {}
        for rate in sorted(package.rates, key=lambda rate: specificity(rate.pattern)):
            self._patterns.setdefault(rate.pattern.partition("/")[0], []).append(rate)

    @property
    def source(self) -> str:
        """The package and its version."""
        return self._source

    def of(self, pattern: str) -> Cost | None:
        """The unit costs of a pattern, or of a model by one of its names; None = the package does not know it."""
        rate = self._exact.get(pattern)
        if rate is not None:
            return Cost(values_of(rate), self._source)
        provider, _, model = pattern.partition("/")
        if "*" in pattern:
            return None
        if provider in self._known:
            rate = self._named(provider, model)
            return None if rate is None else Cost(values_of(rate), self._source)
        bare = model.rpartition("/")[2]  # resellers name models vendor/model
        for vendor in VENDORS:
            rate = self._named(vendor, bare)
            if rate is not None:
                return Cost(values_of(rate), f"inherited:{vendor} {self._source}")
        return None

    def _named(self, provider: str, model: str) -> PackageRate | None:
        known = self._patterns.get(provider, ())
        for name in names(model):
            found = next((rate for rate in known if matches(rate.pattern, f"{provider}/{name}")), None)
            if found is not None:
                return found
        return None


def names(model: str) -> Iterator[str]:
    """A model's name and the other ones under which vendors and price lists know it, likeliest first."""
    yield model
    undated = _DATE.sub("", model)
    if undated != model:
        yield undated
    if model.startswith("claude-") and undated.endswith("-0"):
        yield undated.removesuffix("-0")
    gemini = _GEMINI.fullmatch(undated)
    if gemini is not None:
        yield f"gemini-{gemini[2]}-{gemini[1]}{gemini[3] or ''}"
