"""Links to pictures that need no header: signed with a secret all Gateways share, and expiring."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from serve.errors import LinkRefused
from serve.secret import secret_of
from serve.settings import Settings

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
    return Links(secret_of(settings), settings.link_ttl_s)
