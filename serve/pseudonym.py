"""Users in logs and traces: the same one is the same word everywhere, and nobody reads from it who it is."""

from __future__ import annotations

import hashlib
import hmac

from serve.secret import derived, secret_of
from serve.settings import Settings

DIGITS = 16


class Pseudonyms:
    """HMAC-SHA256 under a key of this service: without it, no list of names can be tried."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, settings: Settings) -> Pseudonyms:
        return cls(derived(secret_of(settings), "users in logs"))

    def __call__(self, user: str) -> str:
        return hmac.new(self._key, user.encode(), hashlib.sha256).hexdigest()[:DIGITS]
