"""What there is to be allowed, and which role may do it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from serve.access_settings import ROLES, AccessSettings, RoleName, RoleSettings
from serve.quota import Quota


class Right(StrEnum):
    """What a route asks for."""

    OPEN = "open"  # of everybody, without a look at who it is
    LINK = "link"  # a signed link; without one as READ
    METRICS = "metrics"  # the token for metrics, or a service that only this machine reaches; else as ADMIN
    READ = "read"  # to see what is one's own
    CHANGE = "change"  # to cancel and delete what is one's own
    DRAW = "draw"  # to have pictures drawn; counted against the quota
    ADMIN = "admin"
    KEYS = "keys"  # as ADMIN, but never of somebody who has not said who they are


_READING = frozenset({Right.OPEN, Right.LINK, Right.READ})
_DRAWING = _READING | {Right.CHANGE, Right.DRAW}

GRANTS: dict[RoleName, frozenset[Right]] = {
    "viewer": _READING,
    "preset_only": _DRAWING,
    "user": _DRAWING,
    "admin": frozenset(Right),
}


def highest(roles: list[RoleName], default: RoleName | None) -> RoleName | None:
    """Of several roles the one that may do most."""
    return min(roles, key=ROLES.index) if roles else default


def terms(settings: AccessSettings, user: str, role: RoleName) -> dict[str, Any]:
    """Quota and priority of a user: what is said of the user counts before what is said of the role."""
    of_role = settings.roles.get(role, RoleSettings())
    of_user = settings.users.get(user)
    limits = of_role.model_dump(exclude={"interactive"})
    if of_user is not None:
        limits |= of_user.model_dump(exclude_unset=True)
    return {"quota": Quota(**limits), "interactive": of_role.interactive}
