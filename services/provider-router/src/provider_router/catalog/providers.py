"""The providers of this router, as its settings name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import SecretStr

from provider_router.settings import ANTHROPIC_BASE_URL, DEMO, OPENAI_BASE_URL, ProviderSettings, Settings

ProviderKind = Literal["openai", "anthropic", "demo"]
DEMO_MODELS: Final = ("echo",)


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. `repr` shows no key."""

    name: str
    kind: ProviderKind
    base_url: str
    """Without trailing slash; empty for the built-in one."""
    api_key: SecretStr | None
    models: tuple[str, ...] | None
    """Models that a bare name reaches; None = as `catalog` knows them, or only names with the provider's prefix."""
    weight: int = 100


def load(settings: Settings) -> dict[str, Provider]:
    """All configured providers by name, the built-in one first."""
    providers: dict[str, Provider] = {}
    if settings.demo_provider == "on":
        providers[DEMO] = Provider(DEMO, "demo", "", None, DEMO_MODELS)
    entries = dict(settings.providers)
    if settings.openai_api_key is not None or settings.openai_base_url is not None:
        entries.setdefault("openai", ProviderSettings())
    if settings.anthropic_api_key is not None or settings.anthropic_base_url is not None:
        entries.setdefault("anthropic", ProviderSettings())
    usual: Mapping[str, tuple[str, SecretStr | None]] = {
        "openai": (settings.openai_base_url or OPENAI_BASE_URL, settings.openai_api_key),
        "anthropic": (settings.anthropic_base_url or ANTHROPIC_BASE_URL, settings.anthropic_api_key),
    }
    for name, entry in sorted(entries.items()):
        base_url, key = entry.base_url, entry.api_key
        if base_url is None:
            # Only then: a key never goes to a base URL that was configured without it.
            base_url, usual_key = usual[name]
            key = key or usual_key
        kind: ProviderKind = entry.kind or ("anthropic" if name == "anthropic" else "openai")
        providers[name] = Provider(name, kind, base_url, key, entry.models, entry.weight)
    return providers
