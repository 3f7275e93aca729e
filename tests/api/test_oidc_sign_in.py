"""The page's sign-in at a real OpenID provider (npm's oidc-provider), and every answer that must not let anybody in."""

import time
from http.cookies import SimpleCookie

import pytest
import pytest_asyncio
from joserfc import jwt

from serve.access.oidc import OpenIdProvider
from serve.access.oidc_sign_in import COOKIE, OpenIdSignIn
from serve.access.sessions import COOKIE as SESSION
from serve.access_settings import OidcSettings
from serve.errors import Forbidden, SignInExpired, SignInFailed, SignInRefused, Unavailable
from tests.oidc.provider import KEY, page_settings, provider, visited

JSON = {"Accept": "application/json"}
BACK = "http://door/auth/oidc/callback"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    with provider(tmp_path_factory.mktemp("provider")) as url:
        yield url


def sign_in(issuer: str, key: bytes = b"k" * 32, **changes) -> OpenIdSignIn:
    settings = OidcSettings(**page_settings(issuer, **changes))
    return OpenIdSignIn(settings, OpenIdProvider(settings), key)


def query(url: str) -> dict[str, str]:
    from httpx import URL

    return dict(URL(url).params)


async def test_somebody_signs_in_draws_and_signs_out(guarded, door, issuer):
    async with guarded(oidc=page_settings(issuer)) as service, door(service.app) as client:
        there = await client.get("/auth/oidc/login")
        back = await visited(there.headers["Location"], "eve")
        home = await client.get(back)
        me = (await client.get("/v1/me")).json()
        token = {"X-CSRF-Token": me["csrf_token"]}
        job = await client.post("/v1/jobs", json={"prompt": "a fox"}, headers=token)
        gone = await client.delete("/v1/session", headers=token)
        out = await client.get("/auth/oidc/logout")
        after = await client.get("/v1/me")
    assert (there.status_code, home.status_code, home.headers["Location"]) == (302, 302, "http://door/")
    assert (me["user"], me["role"], me["via"]) == ("oidc:eve", "user", "oidc")
    assert (job.status_code, gone.status_code, after.status_code) == (202, 204, 401)
    assert out.headers["Location"].startswith(f"{issuer}/session/end?client_id=page&post_logout_redirect_uri=")
    asked = query(there.headers["Location"])
    assert (asked["code_challenge_method"], asked["scope"]) == ("S256", "openid profile")
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 32


async def test_what_the_browser_keeps_is_short_lived_and_for_no_script(guarded, door, issuer):
    async with guarded(oidc=page_settings(issuer)) as service, door(service.app) as client:
        secure = await client.get("https://door/auth/oidc/login")
        there = await client.get("/auth/oidc/login")
        home = await client.get(await visited(there.headers["Location"], "eve"))
    cookie = SimpleCookie(there.headers["Set-Cookie"])[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "lax", "600")
    assert "Secure" in secure.headers["Set-Cookie"]
    kept = home.headers.get_list("Set-Cookie")
    assert any(f"{SESSION}=" in one and "SameSite=strict" in one and "HttpOnly" in one for one in kept)
    assert any(f'{COOKIE}=""' in one and "Max-Age=0" in one for one in kept)
    assert {one.headers["Cache-Control"] for one in (there, home)} == {"no-store"}


async def test_one_gateway_begins_and_another_ends(guarded, stuck, door, issuer, service, settings):
    from serve.api.app import create_app

    async with guarded(oidc=page_settings(issuer)) as first, door(first.app) as client:
        there = await client.get("/auth/oidc/login")
        changed = first.app.state.door.settings
        other = create_app(first.dispatcher, service.assets, service.prompts, changed)
        async with door(other) as second:
            second.cookies = client.cookies
            await second.get(await visited(there.headers["Location"], "eve"))
            client.cookies = second.cookies
        assert (await client.get("/v1/me")).json()["user"] == "oidc:eve"


async def test_a_public_client_needs_no_secret(issuer):
    flow = sign_in(issuer, client_id="public", client_secret=None)
    url, cookie = await flow.begin(BACK)
    assert (await flow.finish(cookie, query(await visited(url, "eve")), BACK)).role == "user"


async def test_a_secret_goes_into_the_body_where_the_provider_wants_it_there(issuer, monkeypatch):
    flow = sign_in(issuer)
    url, _ = await flow.begin(BACK)
    back = query(await visited(url, "eve"))
    known = await flow._known()
    sent = {}

    class Client:
        async def post(self, url, data, headers):
            sent.update(data | headers)
            raise KeyError

    from dataclasses import replace

    with pytest.raises(KeyError):
        await flow._tokens(Client(), replace(known, basic=False), back["code"], back["state"], BACK)
    assert (sent["client_id"], sent["client_secret"], "Authorization" in sent) == (
        "page",
        "a secret: of/the page",
        False,
    )


# --- answers that let nobody in


@pytest_asyncio.fixture(loop_scope="session")
async def under_way(issuer):
    """A sign-in as it comes back from the provider."""
    flow = sign_in(issuer)
    url, cookie = await flow.begin(BACK)
    return flow, cookie, query(await visited(url, "eve"))


async def test_an_answer_works_once(under_way):
    flow, cookie, answer = under_way
    assert (await flow.finish(cookie, answer, BACK)).user == "oidc:eve"
    with pytest.raises(SignInFailed):
        await flow.finish(cookie, answer, BACK)


@pytest.mark.parametrize("state", ["", "x", "é", "A" * 32])
async def test_another_state_is_refused(under_way, state):
    flow, cookie, answer = under_way
    with pytest.raises(SignInExpired):
        await flow.finish(cookie, answer | {"state": state}, BACK)


async def test_an_answer_is_for_the_browser_that_began(under_way, issuer):
    """Or somebody could be signed in as another, whose link they were sent."""
    flow, _, answer = under_way
    _, other = await flow.begin(BACK)
    for cookie in ("", "x", "..", "é.9999999999.x", other, "a" * 300):
        with pytest.raises(SignInExpired):
            await flow.finish(cookie, answer, BACK)


async def test_a_cookie_of_another_secret_or_with_more_time_is_nobodys(under_way, issuer):
    flow, cookie, answer = under_way
    state, expires, signature = cookie.split(".")
    longer = f"{state}.{int(expires) + 600}.{signature}"
    with pytest.raises(SignInExpired):
        await flow.finish(longer, answer, BACK)
    with pytest.raises(SignInExpired):
        await sign_in(issuer, key=b"o" * 32).finish(cookie, answer, BACK)


async def test_whoever_takes_too_long_begins_again(under_way, monkeypatch):
    flow, cookie, answer = under_way
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    with pytest.raises(SignInExpired, match="took over 10 minutes"):
        await flow.finish(cookie, answer, BACK)


async def test_an_answer_of_another_provider_is_refused(under_way):
    flow, cookie, answer = under_way
    assert answer["iss"] == flow._settings.issuer
    with pytest.raises(SignInFailed, match="another provider"):
        await flow.finish(cookie, answer | {"iss": "https://evil.example"}, BACK)


async def test_the_users_no_is_said(issuer):
    flow = sign_in(issuer)
    url, cookie = await flow.begin(BACK)
    answer = query(await visited(url, None))
    assert answer["error"] == "access_denied"
    with pytest.raises(SignInRefused, match="access_denied"):
        await flow.finish(cookie, answer, BACK)


async def test_a_code_of_somebody_elses_sign_in_is_refused(under_way, issuer):
    """PKCE: the code is worth nothing without the verifier of the browser that asked for it."""
    flow, _, stolen = under_way
    url, cookie = await flow.begin(BACK)
    mine = query(url)["state"]
    with pytest.raises(SignInFailed):
        await flow.finish(cookie, stolen | {"state": mine}, BACK)


async def test_without_a_code_nobody_is_asked(under_way):
    flow, cookie, answer = under_way
    with pytest.raises(SignInFailed, match="no code"):
        await flow.finish(cookie, {"state": answer["state"]}, BACK)


FORGERIES = {
    "another nonce": {"nonce": "x"},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "urn:zimage"},
    "another issuer": {"iss": "https://evil.example"},
    "an expired one": {"exp": 1},
    "nobody": {"sub": None},
    "another party": {"aud": ["page", "ci"], "azp": "ci"},
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_an_id_token_that_is_not_for_this_sign_in_proves_nothing(under_way, issuer, name, monkeypatch):
    flow, cookie, answer = under_way
    now = int(time.time())
    claims = {"iss": issuer, "aud": "page", "sub": "eve", "exp": now + 60, "iat": now, "realm": {"roles": ["painters"]}}
    claims |= {"nonce": flow._derived("nonce", answer["state"])}

    async def tokens(*_):
        said = {key: value for key, value in claims.items() if value is not None}
        return {"id_token": jwt.encode({"alg": "RS256", "kid": "one"}, said, KEY), "access_token": "x"}

    monkeypatch.setattr(flow, "_tokens", tokens)
    assert (await flow.finish(cookie, answer, BACK)).user == "oidc:eve"
    claims |= FORGERIES[name]
    with pytest.raises(SignInFailed):
        await flow.finish(cookie, answer, BACK)


async def test_somebody_without_a_role_is_told_so(issuer):
    flow = sign_in(issuer)
    url, cookie = await flow.begin(BACK)
    with pytest.raises(Forbidden, match="oidc:mallory has no role here"):
        await flow.finish(cookie, query(await visited(url, "mallory")), BACK)


async def test_a_provider_that_is_away_is_said_so():
    with pytest.raises(Unavailable):
        await sign_in("http://127.0.0.1:9").begin(BACK)


async def test_a_wrong_secret_of_the_service_is_no_ones_sign_in(issuer):
    flow = sign_in(issuer, client_secret="wrong")
    url, cookie = await flow.begin(BACK)
    with pytest.raises(SignInFailed):
        await flow.finish(cookie, query(await visited(url, "eve")), BACK)


# --- how it is told


async def test_a_program_is_told_in_json_and_a_browser_on_the_page(guarded, door, issuer, refused):
    async with guarded(oidc=page_settings(issuer)) as service, door(service.app) as client:
        refused(await client.get("/auth/oidc/callback?state=x", headers=JSON), 400, "sign_in_expired")
        told = await client.get("/auth/oidc/callback?state=x", headers={"X-Request-ID": "r1", "Accept": "text/html"})
    assert told.headers["Location"] == "http://door/#sign-in=sign_in_expired&request=r1"
    assert SESSION not in told.headers.get("Set-Cookie", "")


async def test_strangers_are_told_how_to_come_in(guarded, stuck, door, issuer):
    async with stuck() as service, door(service.app) as client:
        none = (await client.get("/auth/methods")).json()["data"]
    async with guarded() as service, door(service.app) as client:
        keys = (await client.get("/auth/methods")).json()["data"]
    async with guarded(oidc=page_settings(issuer)) as service, door(service.app) as client:
        both = (await client.get("/auth/methods")).json()["data"]
    assert keys == [{"type": "key"}]
    assert both == [*keys, {"type": "oidc", "label": "the studio", "path": "/auth/oidc/login"}]
    assert none == []


async def test_without_a_client_there_is_no_such_sign_in(guarded, door, refused, issuer):
    async with (
        guarded(oidc=page_settings(issuer, client_id=None, client_secret=None)) as service,
        door(service.app) as client,
    ):
        for name in ("login", "callback", "logout"):
            assert "access.oidc.client_id" in refused(await client.get(f"/auth/oidc/{name}"), 404, "not_found")["hint"]


@pytest.mark.parametrize(
    "changes",
    [{"client_id": None}, {"scopes": ["profile"]}, {"scopes": ["openid", "a b"]}, {"client_id": ""}],
    ids=str,
)
def test_settings_that_cannot_work_stop_the_start(changes):
    with pytest.raises(ValueError, match=r"client|scopes|character"):
        OidcSettings(**page_settings("https://login.example.org", **changes))
