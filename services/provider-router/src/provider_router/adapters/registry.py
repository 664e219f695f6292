"""Every adapter by the kind of provider that it serves."""

from types import MappingProxyType
from typing import Final

from provider_router.adapters.adapter import Adapter, Capability
from provider_router.adapters.anthropic.adapter import AnthropicAdapter
from provider_router.adapters.compatible import CompatibleAdapter
from provider_router.adapters.demo import DEMO

_ECHO: Final = (Capability.TEXT, Capability.STREAM, Capability.SEVERAL_CHOICES)
_ALL: Final[tuple[Adapter, ...]] = (CompatibleAdapter(), AnthropicAdapter(), CompatibleAdapter(DEMO, _ECHO))
ADAPTERS: Final = MappingProxyType({adapter.name: adapter for adapter in _ALL})
"""`openai`, `anthropic`, `demo`."""
