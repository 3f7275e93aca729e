"""Sessions of the page: a signed cookie that says who it is, so that no Gateway has to remember it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

from serve.access.caller import Caller

COOKIE = "zimage_session"
CSRF_HEADER = "X-CSRF-Token"
MAX_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class Sessions:
    key: bytes
    ttl_s: int

    def issue(self, caller: Caller) -> tuple[str, float]:
        """A cookie's value and when it expires: never after what the caller came in with."""
        expires = min(time.time() + self.ttl_s, caller.expires_at or float("inf"))
        said = {"u": caller.user, "r": caller.role, "v": caller.via, "k": caller.key_id, "e": expires}
        padded = base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode()
        payload = padded.rstrip("=")  # which a cookie would have to quote
        return f"{payload}.{self._signature('session', payload)}", expires

    def read(self, cookie: str) -> dict[str, Any] | None:
        """What was said in `issue`, while it is valid."""
        payload, dot, signature = cookie.partition(".")
        if not dot or len(cookie) > MAX_CHARACTERS or not cookie.isascii():
            return None
        if not hmac.compare_digest(self._signature("session", payload), signature):
            return None
        said: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return said if time.time() < said["e"] else None

    def csrf_token(self, cookie: str) -> str:
        """What a page of ours can know, and one of another site that makes the browser send the cookie cannot."""
        return self._signature("csrf", cookie)

    def _signature(self, purpose: str, text: str) -> str:
        return hmac.new(self.key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()
