"""The one secret that all Gateways share: it signs links and sessions, and peppers API keys."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from serve.errors import ConfigError
from serve.settings import Settings

SECRET_BYTES = 32


def secret_of(settings: Settings) -> bytes:
    """`secret_key`, else a secret in the data folder that is made when it is first needed. Raises ConfigError."""
    return settings.secret_key.encode() if settings.secret_key else _stored_secret(settings.data / "secret")


def derived(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose alone: what it signs can never be taken for something else."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


def _stored_secret(path: Path) -> bytes:
    if not path.exists():
        create_secret(path, secrets.token_bytes(SECRET_BYTES))
    secret = path.read_bytes()
    if len(secret) < SECRET_BYTES:
        raise ConfigError(f"{path}: {len(secret)} bytes, a secret has {SECRET_BYTES}", hint=f"delete {path}")
    return secret


def create_secret(path: Path, content: bytes) -> None:
    """Of several processes that start at once the first wins; nobody reads a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
