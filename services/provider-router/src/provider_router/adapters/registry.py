"""Every adapter by the kind of provider that it serves."""

from types import MappingProxyType
from typing import Final

from provider_router.adapters.adapter import Adapter
from provider_router.adapters.compatible import CompatibleAdapter
from provider_router.adapters.demo import DEMO

_ALL: Final[tuple[Adapter, ...]] = (CompatibleAdapter(), CompatibleAdapter(DEMO))
ADAPTERS: Final = MappingProxyType({adapter.name: adapter for adapter in _ALL})
"""`openai`, `anthropic`, `demo`."""
