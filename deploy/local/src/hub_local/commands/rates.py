"""`hub rates`: what models cost, and what they cost before."""

from typing import Final

from contracts.money import parse, to_text
from contracts.rpc import catalog, metering, rate_changes, rate_rows
from contracts.rpc.what_if import WHAT_IF, WhatIf, WhatIfReply
from contracts.usage import RateType, Unit
from hub_local.commands import show
from hub_local.commands.session import UsageError, ask, run

BY: Final = "operator"
"""Who changes rates here, in their history."""
_LONG_S: Final = 60.0
_TIER_UNITS: Final = frozenset({"above", "input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning"})


def set_rates(
    pattern: str,
    *,
    input: str,  # noqa: A002 - the option's name
    output: str,
    cache_read: str | None = None,
    cache_write: str | None = None,
    cache_write_1h: str | None = None,
    reasoning: str | None = None,
    request: str = "0",
    tier: list[str] | None = None,
    piece: list[str] | None = None,
    effective_at: str | None = None,
    expected_version: int | None = None,
    dry_run: bool = False,
    days: int = 30,
) -> None:
    """Set credits per unit for models that match a pattern; calls that already run keep theirs.

    Args:
        pattern: `provider/model`; `*` stands for any run of characters, as in `openai/*`.
        input: credits per input token; embeddings are input.
        output: credits per output token.
        cache_read: credits per input token read from the provider's cache; the input rate when absent.
        cache_write: credits per input token written to it; the input rate when absent.
        cache_write_1h: credits per input token written to it for an hour; the rate for writing when absent.
        reasoning: credits per reasoning token; the output rate when absent.
        request: credits per request.
        tier: rates of longer prompts, as `above=200000,input=0.000006,output=0.0000225`; once per tier.
        piece: rates of other units, as `image=0.04`, `image:1024x1024:hd=0.08`, `audio_second=0.0001`,
            `character=0.000015`, `video_second=0.1`; once per unit, size and quality.
        effective_at: when it begins, as `2027-01-01T00:00:00Z`; at once when absent.
        expected_version: refuse when the rates are not at this version any more (0: when there are any).
        dry_run: set nothing; tell what the calls of the last days would have cost.
        days: how many days back a dry run looks.
    """

    def wanted() -> rate_changes.RatesSet:
        return rate_changes.RatesSet.model_validate(
            {
                "pattern": pattern,
                "input": input,
                "output": output,
                "cache_read": cache_read,
                "cache_write": cache_write,
                "cache_write_1h": cache_write_1h,
                "reasoning": reasoning,
                "request": request,
                "tiers": [_tier(text) for text in tier or ()],
                "pieces": [_piece(text) for text in piece or ()],
                "effective_at": effective_at,
                "expected_version": expected_version,
                "changed_by": BY,
            }
        )

    async def asked() -> catalog.RateView:
        return await ask(catalog.SERVICE, rate_changes.RATES_SET, wanted(), catalog.RateView)

    async def asked_what_if() -> WhatIfReply:
        question = WhatIf(pattern=pattern, rates=wanted(), days=days)
        return await ask(metering.SERVICE, WHAT_IF, question, WhatIfReply, _LONG_S)

    if dry_run:
        _tell(run(asked_what_if()), days)
    else:
        show_rates([run(asked())])


def _tell(reply: WhatIfReply, days: int) -> None:
    """What the calls of the last days would have cost."""
    change = reply.would_cost - reply.cost
    print(
        f"{reply.calls} calls of the last {days} days cost {to_text(reply.cost)} credits and would have cost "
        f"{to_text(reply.would_cost)}: {'+' if change >= 0 else '-'}{to_text(abs(change))}"
    )
    if not reply.complete:
        print("There were more calls than a dry run looks at; the oldest are missing.")


def list_rates(pattern: str | None = None) -> None:
    """List the rates in force, the most specific first.

    Args:
        pattern: only those whose pattern contains this text.
    """
    page = run(
        ask(catalog.SERVICE, rate_changes.RATES_LIST, rate_changes.RatesList(pattern=pattern), rate_changes.RatesPage)
    )
    show_rates(list(page.rates))


def history(pattern: str | None = None, *, limit: int = 50, before: int | None = None) -> None:
    """Show rate versions, newest first: who changed what, when and why.

    Args:
        pattern: of this pattern only.
        limit: at most so many.
        before: only versions older than this one.
    """

    async def asked() -> rate_changes.RateVersions:
        wanted = rate_changes.RatesHistory(pattern=pattern, limit=limit, before=before)
        return await ask(catalog.SERVICE, rate_changes.RATES_HISTORY, wanted, rate_changes.RateVersions)

    show.table(
        (
            "version", "pattern", "changed at", "by", "why", "begins", "from", "to", "deprecated", "costs from",
            "margin %",
        ),
        [
            (
                version.version, version.pattern, version.changed_at, version.changed_by, version.change_type,
                version.effective_at, prices(version.previous),
                "removed" if version.removed else prices(version), "yes" if version.deprecated else "",
                version.cost_source, version.margin_percent or "",
            )
            for version in run(asked()).versions
        ],
    )  # fmt: skip


def deprecate(pattern: str, *, undo: bool = False, expected_version: int | None = None) -> None:
    """Take models out of lists and service; calls that already run end as they began.

    Args:
        pattern: as it stands in `hub rates list`, or a model's own name.
        undo: put them back.
        expected_version: refuse when the rates are not at this version any more.
    """

    async def asked() -> catalog.RateView:
        wanted = rate_changes.RatesDeprecate(
            pattern=pattern, deprecated=not undo, changed_by=BY, expected_version=expected_version
        )
        return await ask(catalog.SERVICE, rate_changes.RATES_DEPRECATE, wanted, catalog.RateView)

    show_rates([run(asked())])


def remove(
    pattern: str,
    *,
    type: RateType = RateType.CHAT,  # noqa: A002 - the option's name
    effective_at: str | None = None,
    expected_version: int | None = None,
) -> None:
    """Take a pattern's rates away: its models cost what a broader rate says, or are not served. History stays.

    Args:
        pattern: as it stands in `hub rates list`.
        type: which calls the rates are for: chat, image, embedding or video.
        effective_at: from when on, as `2027-01-01T00:00:00Z`; at once when absent.
        expected_version: refuse when the rates are not at this version any more.
    """

    async def asked() -> rate_rows.RateRemoved:
        wanted = rate_rows.RatesRemove(
            pattern=pattern, type=type, effective_at=effective_at, expected_version=expected_version, changed_by=BY
        )
        return await ask(catalog.SERVICE, rate_rows.RATES_REMOVE, wanted, rate_rows.RateRemoved)

    removed = run(asked())
    now = "it has no price and is not served" if removed.now is None else f"{removed.now.pattern} has its price"
    print(
        f"{removed.pattern} ({removed.type}) removed from {removed.effective_at} on, version {removed.version}; "
        f"now {now}"
    )


def show_rates(rates: list[catalog.RateView]) -> None:
    """Rates as a table."""
    show.table(
        (
            "pattern", "input", "output", "cache read", "cache write", "1 h", "reasoning", "request", "more", "source",
            "since", "version",
        ),
        [
            (
                rate.pattern, rate.input, rate.output, rate.cache_read or "", rate.cache_write or "",
                rate.cache_write_1h or "", rate.reasoning or "", rate.request, _more(rate), rate.source,
                rate.effective_at, rate.version,
            )
            for rate in rates
        ],
    )  # fmt: skip


def prices(values: catalog.Values | None) -> str:
    """All prices in one cell."""
    if values is None:
        return ""
    units = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
    texts = [f"{unit}={getattr(values, unit)}" for unit in units if getattr(values, unit) is not None]
    if parse(values.request):
        texts.append(f"request={values.request}")
    return " ".join(texts + _parts(values))


def _more(rate: catalog.RateView) -> str:
    marks = [rate.type] if rate.type != RateType.CHAT else []
    return " ".join(marks + (["deprecated"] if rate.deprecated else []) + _parts(rate))


def _parts(values: catalog.Values) -> list[str]:
    tiers = [f"above {tier.above}: {tier.input}/{tier.output}" for tier in values.tiers]
    pieces = [
        f"{':'.join(filter(None, (piece.unit, piece.size, piece.quality)))}={piece.rate}" for piece in values.pieces
    ]
    return tiers + pieces


def _tier(text: str) -> dict[str, str]:
    members = dict(part.partition("=")[::2] for part in text.split(","))
    if not {"above", "input", "output"} <= members.keys() <= _TIER_UNITS:
        raise UsageError(f"--tier {text}: write it as above=200000,input=0.000006,output=0.0000225")
    return members


def _piece(text: str) -> dict[str, str]:
    name, equals, rate = text.partition("=")
    unit, _, rest = name.partition(":")
    size, _, quality = rest.partition(":")
    if not equals or unit not in set(Unit):
        raise UsageError(f"--piece {text}: write it as image:1024x1024:hd=0.08; units are {', '.join(Unit)}")
    return {"unit": unit, "size": size, "quality": quality, "rate": rate}
