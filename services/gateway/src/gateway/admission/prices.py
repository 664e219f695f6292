"""Which providers serve a model at which rates, and how much credit a call may need at most.

A cache of provider-router's catalogue: read at start, again when the catalogue changes, and once a minute.
"""

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final, Literal, NamedTuple

import structlog

from contracts.errors import ErrorCode, HubError
from contracts.money import PLACES
from contracts.rpc.catalog import About, ProviderView, RateView, Snapshot, frozen
from contracts.usage import Candidate, Piece, Rates, piece_rate
from gateway.admission.ceilings import dearest, reachable
from gateway.admission.peek import Peek

_log = structlog.get_logger("prices")
_REFRESH_S: Final = 60.0
_RETRY_S: Final = 0.5
_MEMO_MAX: Final = 4096
_UP: Final = Context(prec=60, rounding=ROUND_CEILING)

MEDIA_TOKENS: Final = 50_000
"""Most input tokens of one image, sound or file (gpt-4o-mini books up to 48,169 for one image)."""
INLINE_BYTES_PER_TOKEN: Final = 64
"""Sound costs about 10 tokens a second and has at least 1 kB of base64 a second."""
TOOLS_TOKENS: Final = 1024
"""Most tokens of the instructions that providers add when tools are offered (Anthropic: up to 530)."""


class Model(NamedTuple):
    """A model that can be called, for the list of models."""

    id: str
    """`provider/model`."""
    provider: str
    model: str
    created: int
    """Unix seconds since which its rates are in force; 0 = free."""
    rates: Rates
    about: About | None = None
    """What its administrators say about it."""


class Catalog:
    """One snapshot, made searchable."""

    def __init__(self, snapshot: Snapshot, *, billing: bool, unpriced_free: bool) -> None:
        self.revision = snapshot.revision
        self._billing = billing
        self._unpriced_free = unpriced_free
        self._providers = {provider.name: provider for provider in snapshot.providers}
        self._listing: dict[str, list[ProviderView]] = {}
        for provider in snapshot.providers:
            for model in provider.models or ():
                self._listing.setdefault(model, []).append(provider)
        self._exact: dict[str, tuple[int, RateView]] = {}
        self._patterns: list[tuple[int, re.Pattern[str], RateView]] = []
        for order, rate in enumerate(snapshot.rates):
            if "*" in rate.pattern:
                parts = map(re.escape, rate.pattern.split("*"))
                self._patterns.append((order, re.compile(".*".join(parts), re.DOTALL), rate))
            else:
                self._exact.setdefault(rate.pattern, (order, rate))
        self.resolve = functools.lru_cache(_MEMO_MAX)(self._resolve)
        self._rate = functools.lru_cache(_MEMO_MAX)(self._first_rate)

    def _resolve(self, name: str) -> tuple[Candidate, ...]:
        named = self._named(name)
        if not named:
            raise HubError(
                ErrorCode.MODEL_NOT_FOUND,
                f"No configured provider serves `{name}`; GET /api/v2/models lists what can be called.",
                param="model",
            )
        served = [(provider, model) for provider, model in named if not self._is_deprecated(provider, model)]
        if not served:
            raise HubError(
                ErrorCode.MODEL_NOT_FOUND,
                f"`{name}` is deprecated and not served any more; GET /api/v2/models lists what can be called.",
                param="model",
            )
        candidates = tuple(filter(None, (self._candidate(provider, model) for provider, model in served)))
        if not candidates:
            raise HubError(
                ErrorCode.MODEL_UNPRICED,
                f"`{name}` has no price; an operator sets one with `hub rates set` (zero is a price).",
                param="model",
            )
        return candidates

    def models(self) -> list[Model]:
        """Every listed model that can be called, by id."""
        found = []
        for provider in self._providers.values():
            for model in provider.models or ():
                candidate = self._candidate(provider.name, model)
                if candidate is not None and not self._is_deprecated(provider.name, model):
                    found.append(self._model(candidate))
        return sorted(found)

    def model(self, name: str) -> Model:
        """The model that a name stands for: of its first provider.

        Raises:
            HubError: `model_not_found` or `model_unpriced`.
        """
        return self._model(self.resolve(name)[0])

    def _named(self, name: str) -> list[tuple[str, str]]:
        """Provider and its own model name, for all that serve a name."""
        prefix, slash, rest = name.partition("/")
        if slash and prefix in self._providers:
            return [(prefix, rest)] if rest else []
        return [(provider.name, name) for provider in self._listing.get(name, ())]

    def _candidate(self, provider: str, model: str) -> Candidate | None:
        if not self._billing:
            return Candidate(provider, model, Rates())
        rate = self._rate(f"{provider}/{model}")
        if rate is None:
            return Candidate(provider, model, Rates()) if self._unpriced_free else None
        return Candidate(provider, model, frozen(rate), rate.rate_id)

    def _is_deprecated(self, provider: str, model: str) -> bool:
        rate = self._rate(f"{provider}/{model}")
        return rate is not None and rate.deprecated

    def _first_rate(self, full_name: str) -> RateView | None:
        """The first rate of the snapshot whose pattern fits."""
        exact = self._exact.get(full_name)
        for order, pattern, rate in self._patterns:
            if exact is not None and exact[0] < order:
                break
            if pattern.fullmatch(full_name):
                return rate
        return None if exact is None else exact[1]

    def _model(self, candidate: Candidate) -> Model:
        rate = self._rate(f"{candidate.provider}/{candidate.model}") if candidate.rate_id else None
        created = 0 if rate is None else _unix(rate.effective_at)
        full_name = f"{candidate.provider}/{candidate.model}"
        about = None if rate is None else rate.about
        return Model(full_name, candidate.provider, candidate.model, created, candidate.rates, about)


class Prices:
    """The catalogue as this gateway knows it.

    Args:
        ask: asks provider-router for its snapshot.
        billing: `off` makes every rate zero.
        unpriced: whether models without a price are refused or served for nothing.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Snapshot]],
        *,
        billing: Literal["credit", "off"],
        unpriced: Literal["refuse", "free"],
    ) -> None:
        self._ask = ask
        self._billing = billing == "credit"
        self._unpriced_free = unpriced == "free"
        self._catalog: Catalog | None = None
        self._stale = asyncio.Event()
        self._stale.set()

    @property
    def ready(self) -> bool:
        """Whether a snapshot has been read."""
        return self._catalog is not None

    @property
    def catalog(self) -> Catalog:
        """The newest snapshot read.

        Raises:
            HubError: `service_unavailable`, none was read yet.
        """
        if self._catalog is None:
            raise HubError(
                ErrorCode.SERVICE_UNAVAILABLE, "The list of models is not read yet; try again.", retry_after_s=1
            )
        return self._catalog

    def resolve(self, model: str) -> tuple[Candidate, ...]:
        """All ways to serve a model, rates included.

        A name that begins with a configured provider and a slash goes to that provider, whatever the model; any other
        name to all providers that list it. Candidates without a price are left out while there are others.

        Raises:
            HubError: `model_not_found`, `model_unpriced`, or `service_unavailable` before the first snapshot.
        """
        return self.catalog.resolve(model)

    def changed(self, revision: int) -> None:
        """The catalogue has this revision: read it again unless we have it."""
        if self._catalog is None or revision != self._catalog.revision:
            self._stale.set()

    async def refresh(self) -> None:
        """Read the snapshot now.

        Raises:
            HubError: provider-router refused or does not answer.
        """
        self._stale.clear()
        snapshot = await self._ask()
        self._catalog = Catalog(snapshot, billing=self._billing, unpriced_free=self._unpriced_free)

    async def keep_fresh(self) -> None:
        """Read at start, after each change and once a minute, until cancelled; keeps the last snapshot meanwhile."""
        while True:
            try:
                await self.refresh()
            except HubError as error:
                _log.warning("catalogue not read", error=str(error.code))
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                async with asyncio.timeout(_REFRESH_S):
                    await self._stale.wait()
            except TimeoutError:
                continue


def hold_input_tokens(peek: Peek) -> int:
    """Most input tokens of a body.

    A byte-level token is at least one byte and JSON is never shorter than the text it carries, so the body's bytes
    bound its text, names and templates. Images and sound count by the piece, tools with what providers add for them.
    """
    text = peek.body_bytes - peek.inline_bytes
    media = peek.media_parts * MEDIA_TOKENS + peek.inline_bytes // INLINE_BYTES_PER_TOKEN
    return text + media + (TOOLS_TOKENS if peek.tools else 0)


def hold_output_tokens(peek: Peek, output_tokens_slice: int) -> int:
    """Output tokens that the first hold covers, over all choices: the client's limit, at most a slice, for each."""
    limit = peek.max_output_tokens
    return peek.choices * (output_tokens_slice if limit is None else min(limit, output_tokens_slice))


def hold_upper_bound(
    peek: Peek, candidates: Iterable[Candidate], output_tokens_slice: int, pieces: tuple[Piece, ...] = ()
) -> Decimal:
    """Credits to hold for a call: what it costs at most until its output exceeds the slice.

    For each candidate: input tokens times the dearest of its input, cache-read and cache-write rates, output tokens
    times the dearer of its output and reasoning rates, its rate per request, and what the pieces cost; where it has
    tiers, the dearest that the input can reach. Of these sums the greatest, rounded up to ten places.
    """
    tokens_in, tokens_out = hold_input_tokens(peek), hold_output_tokens(peek, output_tokens_slice)
    most = Decimal(0)
    for candidate in candidates:
        rates = candidate.rates
        ceiling = reachable(rates, tokens_in) if rates.tiers else dearest(rates)
        cost = tokens_in * ceiling.input + tokens_out * ceiling.output + ceiling.request
        for piece in pieces:
            cost += Decimal(piece.amount) * piece_rate(rates.pieces, piece)
        most = max(most, cost)
    return most.quantize(PLACES, context=_UP)


def _unix(iso: str) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0
