"""`GET …/models`: what can be called, in OpenAI's shape with the rates beside it."""

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, Field

from gateway.admission.prices import Model
from gateway.api.services import Used


class ModelView(BaseModel):
    """A model; the first four fields are OpenAI's."""

    id: str = Field(examples=["openai/gpt-4o"])
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds since which its rates are in force.")
    owned_by: str = Field(description="The provider.")
    input_credits_per_token: str = Field(description="Decimal string.")
    output_credits_per_token: str = Field(description="Decimal string.")


class ModelList(BaseModel):
    """Every model that a configured provider lists."""

    object: Literal["list"] = "list"
    data: list[ModelView]


async def listed(used: Used) -> ModelList:
    """Models that can be called, by name. A provider may serve more under its prefix than it lists."""
    return ModelList(data=[_view(model) for model in used.prices.catalog.models()])


async def one(model_id: str, used: Used) -> ModelView:
    """One model by `provider/model` or bare name; the slash may be percent-encoded."""
    return _view(used.prices.catalog.model(model_id))


def _view(model: Model) -> ModelView:
    return ModelView(
        id=model.id,
        created=model.created,
        owned_by=model.provider,
        input_credits_per_token=plain_rate(model.rates.input),
        output_credits_per_token=plain_rate(model.rates.output),
    )


def plain_rate(rate: str) -> str:
    """All places of a rate, without an exponent."""
    return format(Decimal(rate), "f")
