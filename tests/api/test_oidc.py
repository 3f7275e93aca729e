"""Bearer JWTs of a real OpenID provider (npm's oidc-provider), and every forgery that we know of."""

import base64
import hashlib
import hmac
import json
import time

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from serve.access import oidc
from serve.access.oidc import OpenIdProvider
from serve.access_settings import OidcSettings
from serve.errors import Forbidden, Unavailable
from tests.oidc.provider import KEY, provider

AUDIENCE = "urn:zimage"


@pytest.fixture(scope="session")
def issuer(tmp_path_factory):
    """The URL of a provider that runs."""
    with provider(tmp_path_factory.mktemp("oidc")) as url:
        yield url


def token_of(issuer: str) -> str:
    body = {"grant_type": "client_credentials", "resource": AUDIENCE, "scope": "draw"}
    answer = httpx.post(f"{issuer}/token", data=body, auth=("ci", "secret"))
    return answer.json()["access_token"]


def settings_of(issuer: str, **changes) -> dict:
    roles = {"painters": "user", "others": "viewer"}
    return {"issuer": issuer, "audience": AUDIENCE, "role_claim": "realm.roles", "roles": roles} | changes


def claims_of(issuer: str, **changes) -> dict:
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "eve",
        "exp": now + 300,
        "iat": now,
        "realm": {"roles": ["others"]},
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def forged(claims: dict, key=KEY, alg: str = "RS256", **header) -> str:
    return jwt.encode({"alg": alg, "kid": "one"} | header, claims, key, algorithms=[alg])


def part(data: dict | bytes) -> str:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


async def test_a_providers_token_comes_in_as_its_user_and_highest_role(guarded, door, issuer):
    async with guarded(oidc=settings_of(issuer)) as service, door(service.app) as client:
        bearer = {"Authorization": f"Bearer {token_of(issuer)}"}
        me = (await client.get("/v1/me", headers=bearer)).json()
        job = (await client.post("/v1/jobs", json={"prompt": "a fox"}, headers=bearer)).json()
        key = await client.get("/v1/me", headers=service.headers("ada"))
    assert (me["user"], me["role"], me["via"]) == ("oidc:ci", "user", "oidc")
    assert job["status"] in ("queued", "running")
    assert key.json()["user"] == "ada"


async def test_a_token_without_a_mapped_role_is_known_but_may_nothing(guarded, door, issuer, refused):
    async with guarded(oidc=settings_of(issuer, roles={})) as service, door(service.app) as client:
        bearer = {"Authorization": f"Bearer {token_of(issuer)}"}
        refused(await client.get("/v1/me", headers=bearer), 403, "forbidden")


async def test_a_session_by_token_ends_with_the_token(guarded, door, issuer):
    async with guarded(oidc=settings_of(issuer)) as service, door(service.app) as client:
        bearer = {"Authorization": f"Bearer {token_of(issuer)}"}
        response = await client.post("/v1/session", headers=bearer)
        (age,) = [int(word.split("=")[1]) for word in response.headers["Set-Cookie"].split("; ") if "Max-Age" in word]
        assert (await client.get("/v1/me")).json()["user"] == "oidc:ci"
    assert 200 < age <= 300 + 60


def forgeries(issuer: str) -> dict[str, str]:
    now, claims = int(time.time()), claims_of(issuer)
    public = KEY.as_pem(private=False)
    unsigned = f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."
    hs256 = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims)}"
    mac = hmac.new(public, hs256.encode(), hashlib.sha256).digest()
    head, body, signature = forged(claims).split(".")
    stranger = RSAKey.generate_key(2048)
    return {
        "alg none": unsigned,
        "HS256 with the public key": f"{hs256}.{part(mac)}",
        "HS256 with a secret": forged(claims, OctKey.generate_key(256), "HS256"),
        "an algorithm that is not pinned": forged(
            claims, RSAKey.import_key(KEY.as_dict(private=True) | {"alg": "RS512"}), "RS512"
        ),
        "another key under the same id": forged(claims, stranger),
        "an unknown key id": forged(claims, stranger, kid="two"),
        "a changed body": f"{head}.{part(claims | {'sub': 'root'})}.{signature}",
        "no signature": f"{head}.{body}.",
        "another audience": forged(claims_of(issuer, aud="urn:other")),
        "no audience": forged(claims_of(issuer, aud=None)),
        "another issuer": forged(claims_of("https://evil.example")),
        "expired": forged(claims_of(issuer, exp=now - 61)),
        "no expiry": forged(claims_of(issuer, exp=None)),
        "not yet valid": forged(claims_of(issuer, nbf=now + 120)),
        "no user": forged(claims_of(issuer, sub=None)),
        "a user that is no text": forged(claims_of(issuer, sub=7)),
        "oversized": forged(claims_of(issuer, padding="x" * 8192)),
        "not JSON": f"{part(b'{')}.{part(b'{')}.{part(b'x')}",
        "not base64": "a.b.c",
        "a key of its own": forged(claims, stranger, jwk=stranger.as_dict(private=False), kid="three"),
    }


NAMES = list(forgeries("https://login.example.org"))


@pytest.mark.parametrize("name", NAMES)
async def test_a_forgery_is_nobodys(issuer, name):
    provider = OpenIdProvider(OidcSettings(**settings_of(issuer)))
    assert (await provider.identify(forged(claims_of(issuer)))).user == "oidc:eve"
    assert await provider.identify(forgeries(issuer)[name]) is None


async def test_a_forgery_is_answered_as_every_stranger(guarded, door, issuer, refused):
    async with guarded(oidc=settings_of(issuer)) as service, door(service.app) as client:
        for token in forgeries(issuer).values():
            refused(await client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}), 401, "unauthenticated")


@pytest.mark.parametrize("changes", [{"exp": -30}, {"nbf": 30}, {"iat": 30}])
async def test_clocks_may_differ_a_little(issuer, changes):
    provider = OpenIdProvider(OidcSettings(**settings_of(issuer)))
    changed = {name: int(time.time()) + shift for name, shift in changes.items()}
    assert await provider.identify(forged(claims_of(issuer, **changed))) is not None


async def test_the_keys_are_fetched_once_and_for_unknown_ids_rarely(issuer, monkeypatch):
    provider, fetched = OpenIdProvider(OidcSettings(**settings_of(issuer))), []
    fetch = provider._fetch

    async def counted():
        fetched.append(1)
        return await fetch()

    monkeypatch.setattr(provider, "_fetch", counted)
    unknown = forged(claims_of(issuer), RSAKey.generate_key(2048), kid="two")
    for token in [forged(claims_of(issuer)), *[unknown] * 5, forged(claims_of(issuer))]:
        await provider.identify(token)
    assert len(fetched) == 1
    monkeypatch.setattr(oidc, "ASK_AGAIN_S", -1.0)
    await provider.identify(unknown)
    assert len(fetched) == 2


async def test_a_provider_that_is_away_is_said_so_and_asked_rarely():
    provider = OpenIdProvider(OidcSettings(**settings_of("http://127.0.0.1:9")))
    for _ in range(2):
        with pytest.raises(Unavailable):
            await provider.identify(forged(claims_of("http://127.0.0.1:9")))


async def test_a_token_without_a_role_is_forbidden(issuer):
    with pytest.raises(Forbidden):
        await OpenIdProvider(OidcSettings(**settings_of(issuer))).identify(
            forged(claims_of(issuer, realm={"roles": "x"}))
        )
