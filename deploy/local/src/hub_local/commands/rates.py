"""`hub rates`: what models cost, per token and per request."""

from contracts.rpc import catalog
from hub_local.commands import show
from hub_local.commands.session import ask, run


def set_rates(
    pattern: str,
    *,
    input: str,  # noqa: A002 - the option's name
    output: str,
    cache_read: str | None = None,
    cache_write: str | None = None,
    reasoning: str | None = None,
    request: str = "0",
) -> None:
    """Set credits per unit for models that match a pattern; calls that already run keep theirs.

    Args:
        pattern: `provider/model`; `*` stands for any run of characters, as in `openai/*`.
        input: credits per input token.
        output: credits per output token.
        cache_read: credits per input token read from the provider's cache; the input rate when absent.
        cache_write: credits per input token written to it; the input rate when absent.
        reasoning: credits per reasoning token; the output rate when absent.
        request: credits per request.
    """

    async def asked() -> catalog.RateView:
        wanted = catalog.RatesSet(
            pattern=pattern,
            input=input,
            output=output,
            cache_read=cache_read,
            cache_write=cache_write,
            reasoning=reasoning,
            request=request,
            changed_by="operator",
        )
        return await ask(catalog.SERVICE, catalog.RATES_SET, wanted, catalog.RateView)

    _show([run(asked())])


def list_rates(pattern: str | None = None) -> None:
    """List the rates in force, the most specific first.

    Args:
        pattern: only those whose pattern contains this text.
    """
    page = run(ask(catalog.SERVICE, catalog.RATES_LIST, catalog.RatesList(pattern=pattern), catalog.RatesPage))
    _show(list(page.rates))


def _show(rates: list[catalog.RateView]) -> None:
    show.table(
        ("pattern", "input", "output", "cache read", "cache write", "reasoning", "request", "source", "since"),
        [
            (
                rate.pattern, rate.input, rate.output, rate.cache_read or "", rate.cache_write or "",
                rate.reasoning or "", rate.request, rate.source, rate.effective_at,
            )
            for rate in rates
        ],
    )  # fmt: skip
