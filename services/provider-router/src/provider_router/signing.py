"""A provider's kind and key → the headers that carry the credential."""

from pydantic import SecretStr

from contracts.errors import ErrorCode, HubError


def headers(kind: str, api_key: SecretStr | None) -> tuple[tuple[str, str], ...]:
    """Credential headers of a request; empty without a key (local servers, the demonstration provider).

    Raises:
        HubError: the kind is unknown, so it is unknown how it takes a key.
    """
    secret = api_key.get_secret_value() if api_key is not None else ""
    if not secret:
        return ()
    match kind:
        case "openai":
            return (("authorization", f"Bearer {secret}"),)
        case "anthropic":
            return (("x-api-key", secret),)
        case "demo":
            return ()
        case _:
            raise HubError(ErrorCode.INTERNAL_ERROR, f"Providers of kind {kind[:40]!r} are not known to this router.")
