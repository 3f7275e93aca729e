"""Links to pictures that need no header: signed with a secret all Gateways share, and expiring."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from serve.errors import ConfigError, LinkRefused
from serve.settings import Settings

SECRET_BYTES = 32

_EXPIRY = re.compile("[0-9]{1,12}")
_HINT = "ask for the picture again to get a fresh link"


@dataclass(frozen=True, slots=True)
class Links:
    key: bytes
    ttl_s: int

    def sign(self, asset_id: str, now: float) -> str:
        """The query string of a link good for `ttl_s` seconds; `now` is Unix time."""
        expires = str(int(now) + self.ttl_s)
        return f"expires={expires}&signature={self._signature(asset_id, expires)}"

    def asset_url(self, base: str, asset_id: str, now: float) -> str:
        """Signed; `base` is what absolute URLs begin with."""
        return f"{base}/v1/assets/{asset_id}?{self.sign(asset_id, now)}"

    def thumbnail_url(self, base: str, asset_id: str, now: float) -> str:
        """Signed for the thumbnail alone: it does not open the picture."""
        path = f"{asset_id}/thumbnail"
        return f"{base}/v1/assets/{path}?{self.sign(path, now)}"

    def verify(self, asset_id: str, expires: str | None, signature: str | None, now: float) -> None:
        """Raises LinkRefused."""
        if expires is None or signature is None:
            raise LinkRefused("this link is not signed", hint=_HINT)
        if not _EXPIRY.fullmatch(expires):
            raise LinkRefused("this link's expiry is not a time", param="expires", hint=_HINT)
        if not hmac.compare_digest(self._signature(asset_id, expires).encode(), signature.encode()):
            raise LinkRefused("this link's signature does not fit", param="signature", hint=_HINT)
        if now >= int(expires):
            raise LinkRefused(f"this link expired {int(now) - int(expires)} s ago", param="expires", hint=_HINT)

    def _signature(self, asset_id: str, expires: str) -> str:
        return hmac.new(self.key, f"asset\n{asset_id}\n{expires}".encode(), hashlib.sha256).hexdigest()


def open_links(settings: Settings) -> Links:
    key = settings.secret_key.encode() if settings.secret_key else _stored_secret(settings.data / "secret")
    return Links(key, settings.link_ttl_s)


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
