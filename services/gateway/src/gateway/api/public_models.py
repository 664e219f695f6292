"""`/api/ai-providers/…models`: what models cost, for anybody, in the original's shapes.

Every model is a chat model: other kinds of calls are not served. The lists are made once per change of the catalogue,
since nobody has to show a key for them.
"""

from functools import lru_cache
from typing import Annotated, Final, Literal

from fastapi import Query, Response
from pydantic import BaseModel, Field, TypeAdapter

from gateway.admission.prices import Catalog
from gateway.api.models import plain_rate
from gateway.api.rate_shapes import ModelMetadata, metadata_of
from gateway.api.services import Used

_CHAT: Final = frozenset(("chatCompletion", "chat"))
_CACHED: Final = 16
ModelType = Literal[
    "chatCompletion", "chat", "imageGeneration", "image_generation", "image", "embedding", "video"
]  # fmt: skip
OfType = Annotated[ModelType | None, Query(alias="type", description="Only models of this kind.")]


class PricedModel(BaseModel):
    """A model with its rates."""

    key: str = Field(examples=["openai/gpt-4o"])
    model: str
    type: Literal["chat"] = "chat"
    provider: str
    providerId: str  # noqa: N815 - the original's name
    providerDisplayName: str  # noqa: N815 - the original's name
    input_credits_per_token: str = Field(description="Decimal string.")
    output_credits_per_token: str = Field(description="Decimal string.")
    modelMetadata: ModelMetadata | None = None  # noqa: N815 - the original's name
    status: None = None


class ChatRate(BaseModel):
    """What one provider takes."""

    id: str
    type: Literal["chatCompletion"] = "chatCompletion"
    inputRate: str  # noqa: N815 - the original's name
    outputRate: str  # noqa: N815 - the original's name
    provider: str
    description: str = ""


class ChatProvider(BaseModel):
    """Who serves a model."""

    id: str
    name: str
    displayName: str  # noqa: N815 - the original's name


class ChatModel(BaseModel):
    """A model by its bare name, with all that serve it."""

    model: str
    description: str = ""
    rates: list[ChatRate]
    providers: list[ChatProvider]


_PRICED: Final = TypeAdapter(list[PricedModel])
_GROUPED: Final = TypeAdapter(list[ChatModel])


async def priced(used: Used, of_type: OfType = None) -> Response:
    """Every model that can be called, with its provider and its rates."""
    return _json(_priced(used.prices.catalog, is_wanted=of_type is None or of_type in _CHAT))


async def grouped(used: Used, of_type: OfType = None) -> Response:
    """The same by bare name, with all providers of each."""
    return _json(_grouped(used.prices.catalog, is_wanted=of_type is None or of_type in _CHAT))


@lru_cache(_CACHED)
def _priced(catalog: Catalog, *, is_wanted: bool) -> bytes:
    return _PRICED.dump_json(
        [
            PricedModel(
                key=model.id,
                model=model.model,
                provider=model.provider,
                providerId=model.provider,
                providerDisplayName=model.provider,
                input_credits_per_token=plain_rate(model.rates.input),
                output_credits_per_token=plain_rate(model.rates.output),
                modelMetadata=None if model.about is None else metadata_of(model.about),
            )
            for model in (catalog.models() if is_wanted else ())
        ]
    )


@lru_cache(_CACHED)
def _grouped(catalog: Catalog, *, is_wanted: bool) -> bytes:
    by_name: dict[str, ChatModel] = {}
    for model in catalog.models() if is_wanted else ():
        entry = by_name.setdefault(model.model, ChatModel(model=model.model, rates=[], providers=[]))
        description = "" if model.about is None else model.about.description
        entry.description = entry.description or description
        entry.rates.append(
            ChatRate(
                id=model.id,
                inputRate=plain_rate(model.rates.input),
                outputRate=plain_rate(model.rates.output),
                provider=model.provider,
                description=description,
            )
        )
        entry.providers.append(ChatProvider(id=model.provider, name=model.provider, displayName=model.provider))
    return _GROUPED.dump_json([by_name[name] for name in sorted(by_name)])


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
