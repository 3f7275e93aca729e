"""Who asks, once that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve.access.roles import GRANTS, Right
from serve.access_settings import RoleName
from serve.errors import Forbidden
from serve.messages import Priority
from serve.quota import Quota

Via = Literal["open", "key", "oidc", "ldap", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`quota` is None where access is open: nothing is counted then. `expires_at` is Unix time.

    `key_id` names the API key, also behind a session; `session` is the session's cookie.
    """

    user: str
    role: RoleName
    via: Via
    quota: Quota | None = None
    interactive: bool = True
    key_id: str | None = None
    session: str | None = None
    expires_at: float | None = None

    @property
    def admin(self) -> bool:
        return self.may(Right.ADMIN)

    def may(self, right: Right) -> bool:
        return self.via != "nobody" and right in GRANTS[self.role]

    @property
    def sees_all(self) -> bool:
        """Whoever comes in while access is open does not find what others made while it was not."""
        return self.admin and self.via != "open"

    def owns(self, user: str) -> bool:
        """Whether this one may see and change what belongs to `user`."""
        return self.via != "nobody" and (self.sees_all or user == self.user)

    def priority(self, asked: Priority | None, default: Priority) -> Priority:
        """Raises Forbidden when a role that lacks `interactive` asks for it; as a default it becomes `standard`."""
        if self.interactive or "interactive" not in (asked, asked or default):
            return asked or default
        if asked is not None:
            raise Forbidden(
                f"the role {self.role} may not use the priority interactive",
                param="priority",
                hint='send "standard" or "batch", or leave it out',
            )
        return "standard"

    def check_preset(self, preset: str | None) -> None:
        """Raises Forbidden for a free request of a role that may only use presets."""
        if self.role == "preset_only" and preset is None:
            raise Forbidden(
                "the role preset_only may only draw with a preset",
                param="preset",
                hint="name a preset, GET /v1/presets lists them",
            )


ANONYMOUS = Caller(user="anonymous", role="admin", via="open")
NOBODY = Caller(user="", role="viewer", via="nobody")
