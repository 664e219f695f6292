"""Who is asked, and what is remembered of how it went: the state behind one router's choices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from contracts.errors import HubError
from contracts.usage import Candidate
from provider_router.catalog.providers import Provider
from provider_router.routing import health as rules
from provider_router.routing.candidates import RoundRobin, by_name
from provider_router.routing.health import WELL, Condition, Health

DEFAULT_WEIGHT: Final = 100


class Routing:
    """Order of candidates by weight and health. Nothing waits: sharing happens behind `on_change`.

    Args:
        providers: of this router; a candidate that is none of them is left out while there are others.
        attempts_max: most candidates of one call.
        on_change: hears of every provider whose cool-down began, grew or ended here.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        attempts_max: int,
        on_change: Callable[[str, Health], None] | None = None,
    ) -> None:
        self._providers = providers
        self._attempts_max = attempts_max
        self._on_change = on_change
        self._health: dict[str, Health] = {}
        self._turns = RoundRobin()

    def order(self, candidates: Sequence[Candidate], now: float) -> list[Candidate]:
        """Candidates to ask, in order, at most `attempts_max`; never empty unless `candidates` is.

        Those that cool down are left out unless all do; then the one that is free soonest comes first. A provider
        whose cool-down is over gets one call as a probe before it takes its share again.

        Args:
            candidates: one when the client named the provider, else the pool.
            now: monotonic seconds.
        """
        if len(candidates) < 2:  # noqa: PLR2004 - pinned: nothing to choose
            return list(candidates)
        names = list(dict.fromkeys(candidate.provider for candidate in candidates))
        names = [name for name in names if name in self._providers] or names
        able = [name for name in names if self._condition(name, now) is not Condition.COOLING]
        if able:
            turn = self._turns.ordered(able, self._weight)
            self._send_probe(turn[0], now)
        else:
            turn = sorted(names, key=lambda name: self._health.get(name, WELL).until)
        return by_name(turn, candidates, lambda candidate: candidate.provider)[: self._attempts_max]

    def succeeded(self, provider: str, now: float) -> None:
        """A provider answered."""
        known = self._health.get(provider)
        if known is not None:
            self._take(provider, known, rules.after_success(known, now))

    def failed(self, provider: str, error: HubError, now: float) -> None:
        """A call to a provider failed, before or after its first byte."""
        known = self._health.get(provider, WELL)
        self._take(provider, known, rules.after_failure(known, error, now))

    def learned(self, provider: str, health: Health) -> None:
        """Another router's word, already on this process's clock; not passed on."""
        self._health[provider] = health

    def health(self, provider: str) -> Health:
        """What is known of a provider."""
        return self._health.get(provider, WELL)

    def _condition(self, name: str, now: float) -> Condition:
        known = self._health.get(name)
        return Condition.WELL if known is None else rules.condition(known, now)

    def _weight(self, name: str) -> int:
        provider = self._providers.get(name)
        return DEFAULT_WEIGHT if provider is None else provider.weight

    def _send_probe(self, name: str, now: float) -> None:
        known = self._health.get(name)
        if known is not None and rules.condition(known, now) is Condition.PROBE:
            self._health[name] = rules.probing(known, now)

    def _take(self, provider: str, before: Health, after: Health) -> None:
        if after == before:
            return
        if after == WELL:
            self._health.pop(provider, None)
        else:
            self._health[provider] = after
        if self._on_change is not None and (after.opened, after.until) != (before.opened, before.until):
            self._on_change(provider, after)
