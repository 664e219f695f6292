"""Rates as the original's administrators write and read them: names in camel case, every price a decimal string."""

from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from contracts.rpc import envelope
from contracts.rpc.catalog import (
    TIERS_MAX,
    About,
    ImageOptions,
    PieceValue,
    Rate,
    TierValues,
)
from contracts.rpc.rate_rows import FoundRate, RateInput, UnitCosts
from contracts.usage import PIECES_MAX, TOKENS_MAX, RateType

PROVIDER: Final = r"^[a-z0-9][a-z0-9_-]{0,39}$"
_MODEL_MAX: Final = 100
_KEPT: Final = (
    "input_rate", "output_rate", "caching", "reasoning_rate", "request_rate", "tiers", "pieces", "model_metadata",
)  # fmt: skip
"""What a change that does not name it leaves as it was; provider-router sees to the rest."""
_FIELDS: Final = {
    "pattern": "model",
    "provider": "providerId",
    "input": "inputRate",
    "output": "outputRate",
    "cache_read": "caching.readRate",
    "cache_write": "caching.writeRate",
    "cache_write_1h": "caching.writeRate1h",
    "reasoning": "reasoningRate",
    "request": "requestRate",
    "effective_at": "effectiveAt",
    "expected_version": "expectedVersion",
}
_NEVER_NONE: Final = frozenset({"input_rate", "output_rate"})


def _as_written(value: object) -> object:
    """A JSON number as a decimal text: the shortest that means the same number, so what was typed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{Decimal(repr(value)):f}"


OR_NUMBER: Final = BeforeValidator(_as_written, json_schema_input_type=str | float)
"""Beside the decimal string a JSON number is taken, as the original's pages send it."""
Price = Annotated[Rate, OR_NUMBER]
ProviderId = Annotated[str, Field(pattern=PROVIDER)]
Model = Annotated[str, Field(min_length=1, max_length=_MODEL_MAX, pattern=envelope.PRINTABLE)]


class Camel(BaseModel):
    """Fields by their names in camel case; unknown ones are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True)


class Caching(Camel):
    """Credits per input token read from a cache and written to it; those that are absent cost as input does."""

    read_rate: Price | None = None
    write_rate: Price | None = None
    write_rate_1h: Price | None = Field(None, alias="writeRate1h")


class Costs(UnitCosts):
    """What a vendor takes, in US dollars per token."""

    input: Price
    output: Price


class ModelMetadata(Camel):
    """What a model can do."""

    max_tokens: int | None = Field(None, ge=1, le=TOKENS_MAX)
    features: tuple[Literal["tools", "thinking", "vision"], ...] = Field((), max_length=3)
    image_generation: ImageOptions | None = None


class RateFields(Camel):
    """What can be said about a rate; prices are credits per unit."""

    model_display: str | None = Field(None, max_length=100, pattern=envelope.WITHOUT_NUL)
    description: str | None = Field(None, max_length=2000, pattern=envelope.WITHOUT_NUL)
    caching: Caching | None = None
    reasoning_rate: Price | None = None
    request_rate: Price | None = None
    tiers: tuple[TierValues, ...] | None = Field(None, max_length=TIERS_MAX)
    pieces: tuple[PieceValue, ...] | None = Field(None, max_length=PIECES_MAX)
    unit_costs: Costs | None = Field(None, description="US dollars per token.")
    model_metadata: ModelMetadata | None = None
    deprecated: bool | None = None
    effective_at: str | None = Field(None, max_length=40, description="In the future; at once when absent.")


class NewRateBody(RateFields):
    """A rate of one model for one kind of calls."""

    model: Model
    type: RateType = RateType.CHAT
    input_rate: Price
    output_rate: Price


class RateBody(RateFields):
    """What changes in a rate; what is absent stays as it was."""

    model: Model | None = None
    type: RateType | None = None
    input_rate: Price | None = None
    output_rate: Price | None = None


class ShownProvider(Camel):
    """Whose rate it is."""

    id: str
    name: str
    display_name: str


class ShownRate(Camel):
    """A rate in force; `id` is that of this version: each change gives a new one."""

    id: str
    provider_id: str
    model: str
    model_display: str
    description: str
    type: RateType
    input_rate: str
    output_rate: str
    caching: Caching | None
    reasoning_rate: str | None
    request_rate: str
    tiers: tuple[TierValues, ...]
    pieces: tuple[PieceValue, ...]
    unit_costs: UnitCosts | None
    model_metadata: ModelMetadata | None
    deprecated: bool
    version: int
    source: str
    effective_at: str
    updated_at: str | None
    provider: ShownProvider
    status: None = None


def row(provider: str, body: NewRateBody, expected_version: int = 0) -> RateInput:
    """A rate as provider-router takes it."""
    caching = body.caching or Caching()
    return RateInput(
        pattern=f"{provider}/{body.model}",
        type=body.type,
        input=body.input_rate,
        output=body.output_rate,
        cache_read=caching.read_rate,
        cache_write=caching.write_rate,
        cache_write_1h=caching.write_rate_1h,
        reasoning=body.reasoning_rate,
        request=body.request_rate or "0",
        tiers=body.tiers or (),
        pieces=body.pieces or (),
        about=_about(body),
        unit_costs=body.unit_costs,
        deprecated=body.deprecated,
        effective_at=body.effective_at,
        expected_version=expected_version,
    )


def changed(rate: FoundRate, body: RateBody) -> RateInput:
    """The next version of a rate: what the body says, and the rest as it was."""
    shown = shown_rate(rate)
    about = rate.about or About()
    same = {name: getattr(shown, name) for name in _KEPT}
    same |= {"model_display": about.display or None, "description": about.description or None}
    given = {name: getattr(body, name) for name in body.model_fields_set}
    for name in _NEVER_NONE & given.keys():
        if given[name] is None:
            del given[name]
    whole = NewRateBody.model_validate({**same, **given, "model": shown.model, "type": rate.type}, by_name=True)
    return row(shown.provider_id, whole, rate.version)


def field(param: str | None) -> str | None:
    """What provider-router calls a field → what it is called here."""
    if param is None:
        return None
    first, dot, rest = param.partition(".")
    return _FIELDS.get(first, first) + dot + rest


def metadata_of(about: About) -> ModelMetadata | None:
    """What a model can do; None = nobody has said."""
    metadata = ModelMetadata(max_tokens=about.max_tokens, features=about.features, image_generation=about.images)
    return None if metadata == ModelMetadata() else metadata


def shown_rate(rate: FoundRate) -> ShownRate:
    """A rate as administrators read it."""
    provider, _, model = rate.pattern.partition("/")
    about = rate.about or About()
    cached = {"read_rate": rate.cache_read, "write_rate": rate.cache_write, "write_rate_1h": rate.cache_write_1h}
    costs = rate.costs
    return ShownRate(
        id=rate.rate_id,
        provider_id=provider,
        model=model,
        model_display=about.display or _display(model),
        description=about.description,
        type=rate.type,
        input_rate=rate.input,
        output_rate=rate.output,
        caching=None if not any(cached.values()) else Caching.model_validate(cached, by_name=True),
        reasoning_rate=rate.reasoning,
        request_rate=rate.request,
        tiers=rate.tiers,
        pieces=rate.pieces,
        unit_costs=None if costs is None else UnitCosts(input=costs.input, output=costs.output),
        model_metadata=metadata_of(about),
        deprecated=rate.deprecated,
        version=rate.version,
        source=rate.source,
        effective_at=rate.effective_at,
        updated_at=rate.changed_at,
        provider=ShownProvider(id=provider, name=provider, display_name=provider),
    )


def _about(body: RateFields) -> About | None:
    metadata = body.model_metadata
    if body.model_display is None and body.description is None and metadata is None:
        return None
    metadata = metadata or ModelMetadata()
    return About(
        display=body.model_display or "",
        description=body.description or "",
        max_tokens=metadata.max_tokens,
        features=metadata.features,
        images=metadata.image_generation,
    )


def _display(model: str) -> str:
    """A model's name for people: its last part, words in title case."""
    return model.rpartition("/")[2].replace("-", " ").title()
