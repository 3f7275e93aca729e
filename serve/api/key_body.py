"""The body of `POST /v1/admin/keys`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from serve.access_settings import RoleName
from serve.api.generation import Body


class KeyBody(Body):
    model_config = ConfigDict(title="NewKey")

    name: str = Field(description="what the key is for, 1 to 64 printable ASCII characters")
    role: RoleName = Field("user", description="admin, user, preset_only or viewer")
    user: str | None = Field(None, description="whose jobs it makes and sees; default: the name")
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = Field(None, description="1 to 3650")
