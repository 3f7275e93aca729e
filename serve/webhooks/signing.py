"""The secrets that webhooks are signed with, and the headers of Standard Webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from serve.errors import ConfigError
from serve.messages import ANONYMOUS
from serve.secret import create_secret
from serve.settings import WHSEC, Settings

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """The service's secrets, newest first; each signs, so that receivers can change over in their own time.

    A user's secrets are derived from them: who can check the own webhooks cannot forge those of others.
    """

    secrets: tuple[str, ...]

    def of(self, user: str) -> tuple[str, ...]:
        """As users are given them; without access control there is one user, and the service's own secrets."""
        return self.secrets if user == ANONYMOUS else tuple(_derived(secret, user) for secret in self.secrets)

    def headers(self, user: str, message_id: str, at: float, body: str) -> dict[str, str]:
        """`at` is Unix time."""
        sent = datetime.fromtimestamp(int(at), UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at)),
            "webhook-signature": " ".join(Webhook(secret).sign(message_id, sent, body) for secret in self.of(user)),
        }


def open_keys(settings: Settings) -> Keys:
    """From `webhooks.secret`, else derived from `secret_key`, else from a file that is made once in the data folder."""
    own = settings.webhooks
    newest = own.secret or (settings.secret_key and _from_key(settings.secret_key.encode(), "webhooks"))
    newest = newest or _stored(settings.data / "webhook_secret")
    return Keys((newest,) if own.previous_secret is None else (newest, own.previous_secret))


def new_secret() -> str:
    return _whsec(secrets.token_bytes(SECRET_BYTES))


def _derived(secret: str, user: str) -> str:
    return _from_key(base64.b64decode(secret.removeprefix("whsec_")), f"user\n{user}")


def _from_key(key: bytes, purpose: str) -> str:
    return _whsec(hmac.new(key, purpose.encode(), hashlib.sha256).digest())


def _whsec(key: bytes) -> str:
    return f"whsec_{base64.b64encode(key).decode()}"


def _stored(path: Path) -> str:
    if not path.exists():
        create_secret(path, new_secret().encode())
    secret = path.read_text().strip()
    if not WHSEC.fullmatch(secret):
        raise ConfigError(f"{path}: not whsec_ and 24 to 64 bytes in base64", hint=f"delete {path} to have a new one")
    return secret
