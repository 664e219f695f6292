"""The owner's access key of a first start: made here, shown once, stored nowhere; the gateway keeps its digest."""

from hub_local.folder import DataFolder


def new_key() -> str:
    """`blocklet-` and the base58 text of a random Ed25519 public key."""
    import base58  # noqa: PLC0415 - needed at the first start only
    from nacl.signing import SigningKey  # noqa: PLC0415

    public = bytes(SigningKey.generate().verify_key)
    return f"blocklet-z{base58.b58encode(public).decode()}"


def is_due(folder: DataFolder) -> bool:
    """Whether no owner key has been shown yet; the mark lies beside the database whose first owner it means."""
    return not (folder.postgres / "owner_key_shown").exists()


def was_shown(folder: DataFolder) -> None:
    """Show no other key from now on."""
    (folder.postgres / "owner_key_shown").touch()
