"""Who may come in and what they may do: the section `access` of the settings."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

RoleName = Literal["admin", "user", "preset_only", "viewer"]
ROLES: tuple[RoleName, ...] = ("admin", "user", "preset_only", "viewer")

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]
Amount = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class QuotaSettings(_Section):
    """What one user may draw; what is left out is not limited. Days begin at midnight UTC."""

    images_per_minute: Amount | None = None
    images_per_day: Amount | None = None
    pixel_steps_per_minute: Amount | None = None
    pixel_steps_per_day: Amount | None = None


class RoleSettings(QuotaSettings):
    interactive: bool = Field(True, description="may ask for the priority `interactive`")


class OidcSettings(_Section):
    """One OpenID provider: its bearer JWTs, and with a `client_id` its sign-in for the page.

    Symmetric algorithms are not on offer.
    """

    issuer: str = Field(pattern=r"^https?://[^\s]+$", description="as in the token's `iss`")
    audience: str = Field(min_length=1, description="must be in the token's `aud`")
    jwks_url: str | None = Field(None, pattern=r"^https?://[^\s]+$", description="default: asked of the issuer")
    algorithms: tuple[Algorithm, ...] = Field(("RS256",), min_length=1)
    leeway_s: int = Field(60, ge=0, le=600, description="by which clocks may differ")
    user_claim: str = Field("sub", min_length=1)
    user_prefix: str = Field("oidc:", description="keeps these users apart from those of API keys")
    role_claim: str = Field("roles", min_length=1, description="a path such as realm_access.roles")
    roles: dict[str, RoleName] = Field({}, description="value of the claim to role; of several the highest")
    default_role: RoleName | None = Field(None, description="of users without a mapped value; none: refused")
    client_id: str | None = Field(None, min_length=1, description="of the page at the provider; none: no sign-in there")
    client_secret: str | None = Field(None, min_length=1, repr=False, description="none: a public client")
    scopes: tuple[str, ...] = Field(("openid", "profile"), description="that the sign-in asks for")
    label: str = Field("OpenID", min_length=1, max_length=64, description="what the page calls the provider")

    @model_validator(mode="after")
    def _can_sign_in(self) -> OidcSettings:
        if self.client_id is None and self.client_secret is not None:
            raise ValueError("client_secret needs client_id")
        if "openid" not in self.scopes or any(not scope or " " in scope for scope in self.scopes):
            raise ValueError('scopes must hold "openid", and one word each')
        return self

    @model_validator(mode="after")
    def _is_private(self) -> OidcSettings:
        for url in (self.issuer, self.jwks_url):
            if url is not None and url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
                raise ValueError(f"{url} must be https: keys that come in the clear can be forged")
        return self


class LdapSettings(_Section):
    """Users with a password in a directory, by HTTP Basic. Either `user_dn` or `search_base` finds them."""

    url: str = Field(pattern=r"^ldaps?://[^\s/]+/?$", description="ldaps://host, or ldap://host with start_tls")
    start_tls: bool = False
    ca_file: Path | None = Field(None, description="certificates to trust; default: the system's")
    plaintext: bool = Field(False, description="allow passwords to cross a network in the clear")
    user_dn: str | None = Field(None, pattern=r"\{user\}", description="such as uid={user},ou=people,dc=example,dc=org")
    search_base: str | None = None
    search_filter: str = Field("(uid={user})", pattern=r"\{user\}")
    bind_dn: str | None = Field(None, description="who searches; default: anonymous")
    bind_password: str | None = Field(None, repr=False)
    group_base: str | None = Field(None, description="where groups are; default: no groups")
    group_filter: str = Field("(|(member={dn})(uniqueMember={dn})(memberUid={user}))", min_length=1)
    roles: dict[str, RoleName] = Field({}, description="DN of a group to role; of several the highest")
    default_role: RoleName | None = Field(None, description="of users in no mapped group; none: refused")
    user_prefix: str = Field("ldap:", description="keeps these users apart from those of API keys")
    cache_s: float = Field(60, ge=0, le=3600, description="an accepted password is not asked again for this long")
    timeout_s: int = Field(5, ge=1, le=60)

    @model_validator(mode="after")
    def _is_whole(self) -> LdapSettings:
        if (self.user_dn is None) == (self.search_base is None):
            raise ValueError("give either user_dn or search_base")
        encrypted = self.url.startswith("ldaps://") or self.start_tls
        if not (encrypted or self.plaintext or is_loopback(urlsplit(self.url).hostname or "")):
            raise ValueError(f"passwords would go to {self.url} in the clear: use ldaps:// or start_tls")
        return self


class AccessSettings(_Section):
    """`access: open` is short for `access: {mode: open}`."""

    mode: Literal["auto", "open", "required"] = "auto"
    roles: dict[RoleName, RoleSettings] = {}
    users: dict[str, QuotaSettings] = {}
    session_ttl_s: int = Field(12 * 3600, ge=60)
    failed_sign_ins_per_minute: int = Field(20, ge=1, description="more wrong keys or passwords are answered with 429")
    metrics_token: str | None = Field(None, min_length=16, repr=False)
    oidc: OidcSettings | None = None
    ldap: LdapSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
