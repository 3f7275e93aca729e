"""A user as another service vouches for it."""

from __future__ import annotations

from dataclasses import dataclass

from serve.access.roles import highest
from serve.access_settings import RoleName
from serve.errors import Forbidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`expires_at` is Unix time, None where nobody has said."""

    user: str
    role: RoleName
    expires_at: float | None = None


def role_of(user: str, found: list[RoleName], default: RoleName | None) -> RoleName:
    """Raises Forbidden for a user whom no role was given."""
    role = highest(found, default)
    if role is None:
        raise Forbidden(f"{user[:64]} has no role here", hint="ask the operator for one")
    return role
