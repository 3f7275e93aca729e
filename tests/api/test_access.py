"""Who comes in, by what, and how the page's session differs from a key."""

import time

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, AuthenticationError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from serve.access.keys import FRESH_S
from serve.access.sessions import COOKIE

ME = "/v1/me"
KEYS = "/v1/admin/keys"


async def status(client: httpx.AsyncClient, headers: dict[str, str], path: str = ME) -> int:
    return (await client.get(path, headers=headers)).status_code


@pytest.mark.parametrize(
    "header", ["Authorization: Bearer {}", "authorization: bearer {}", "Api-Key: {}", "X-API-Key: {}"]
)
async def test_a_key_comes_in_these_headers(guarded, door, header):
    async with guarded() as service, door(service.app) as client:
        name, value = header.format(service.keys["ada"]).split(": ")
        me = (await client.get(ME, headers={name: value})).json()
    assert (me["user"], me["role"], me["via"], me["quota"]) == ("ada", "user", "key", [])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer none"},
        {"Authorization": "Bearer zk_" + "A" * 43},
        {"Authorization": "Bearer " + "A" * 20_000},
        {"Authorization": "Basic YWRhOmFkYQ=="},
        {"Authorization": "Digest x"},
        {"Authorization": "Bearer e30.e30.e30"},
        {"Api-Key": ""},
        {"Cookie": f"{COOKIE}=e30=.00"},
        {"Cookie": f"{COOKIE}=x"},
    ],
    ids=str,
)
async def test_strangers_are_all_answered_alike(guarded, door, refused, headers):
    async with guarded() as service, door(service.app) as client:
        error = refused(await client.get(ME, headers=headers), 401, "unauthenticated")
        other = refused(await client.get(ME, headers=service.headers("revoked")), 401, "unauthenticated")
    assert error | {"request_id": ""} == other | {"request_id": ""}
    assert "zimage keys create" in error["hint"]


async def test_a_known_header_with_a_wrong_key_is_not_saved_by_a_cookie(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:
        await client.post("/v1/session", headers=service.headers("ada"))
        assert await status(client, {}) == 200
        refused(await client.get(ME, headers={"Authorization": "Bearer x"}), 401, "unauthenticated")


async def test_openais_client_comes_in_by_its_key(guarded, serving):
    async with guarded() as service, serving(service.app) as base_url:
        async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key=service.keys["viewer"]) as openai:
            assert (await openai.models.list()).data[0].id == "z-image-turbo"
        async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as openai:
            with pytest.raises(AuthenticationError):
                await openai.models.list()


async def test_a_signed_link_needs_no_key(guarded, door, service):
    from serve.messages import ImageRequest, Submission, Succeeded

    request = ImageRequest(model="z-image-turbo", prompt="a fox", width=64, height=64, steps=1, seed=1)
    job_id = await service.submit(Submission(job_id="01K8Z3V7Q4M5N6P7R8S9T0VWXA", request=request, prompt_tokens=9))
    (done,) = [event async for event in service.watch(job_id) if isinstance(event, Succeeded)]
    async with guarded() as closed, door(closed.app) as client:
        the_door = closed.app.state.door
        url = the_door.asset_url("", done.images[0].asset_id, time.time())
        answers = [(await client.get(path)).status_code for path in (url, url + "0", url.partition("?")[0])]
    assert answers == [200, 403, 401]


# --- sessions


@pytest_asyncio.fixture(loop_scope="session")
async def page(guarded, door):
    """A browser that has logged in as ada."""
    async with guarded() as service, door(service.app) as client:
        response = await client.post("/v1/session", headers=service.headers("ada"))
        assert response.status_code == 201
        yield service, client, response


async def test_a_sessions_cookie_is_for_this_site_alone(page):
    _, _, response = page
    cookie = response.headers["Set-Cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age="))
    assert "Secure" not in cookie


async def test_a_session_reads_without_and_writes_with_a_token(page, refused):
    _, client, response = page
    me = (await client.get(ME)).json()
    assert (me["user"], me["csrf_token"]) == ("ada", response.json()["csrf_token"])
    assert refused(await client.post("/v1/jobs", json={"prompt": "a fox"}), 403, "forbidden")["param"] == "X-CSRF-Token"
    wrong = {"X-CSRF-Token": me["csrf_token"][::-1]}
    refused(await client.post("/v1/jobs", json={"prompt": "a fox"}, headers=wrong), 403, "forbidden")
    right = {"X-CSRF-Token": me["csrf_token"]}
    assert (await client.post("/v1/jobs", json={"prompt": "a fox"}, headers=right)).status_code == 202


async def test_a_session_ends_by_delete_and_with_its_key(page, refused):
    service, client, response = page
    cookie = client.cookies[COOKIE]
    token = {"X-CSRF-Token": response.json()["csrf_token"]}
    assert (await client.delete("/v1/session", headers=token)).status_code == 204
    assert COOKIE not in client.cookies
    client.cookies.set(COOKIE, cookie)
    assert await status(client, {}) == 200
    (key,) = [key for key in await service.dispatcher.api_keys() if key.name == "ada"]
    await service.dispatcher.revoke_api_key(key.id)
    service.app.state.door.access.keys.forget()
    refused(await client.get(ME), 401, "unauthenticated")


async def test_a_changed_cookie_is_nobodys(page, refused):
    _, client, _ = page
    cookie = client.cookies[COOKIE]
    client.cookies.clear()
    for changed in (flipped(cookie, -1), flipped(cookie, 0), "A" + cookie, cookie + "=", cookie.split(".")[0] + "."):
        refused(await client.get(ME, headers={"Cookie": f"{COOKIE}={changed}"}), 401, "unauthenticated")


def flipped(text: str, at: int) -> str:
    at %= len(text)
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


async def test_every_character_of_a_cookie_counts(page):
    """Also those whose last bits base64 does not use: the signature is of the text, not of what it stands for."""
    service, client, _ = page
    cookie, sessions = client.cookies[COOKIE], service.app.state.door.access.sessions
    assert sessions.read(cookie)["u"] == "ada"
    assert [at for at in range(len(cookie)) if sessions.read(flipped(cookie, at)) is not None] == []
    upper = cookie.partition(".")[0] + "." + cookie.partition(".")[2].upper()
    assert sessions.read(upper) is None


async def test_a_sessions_socket_is_for_pages_of_this_host(guarded, serving):
    async with guarded() as service, serving(service.app) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        await http.post("/v1/session", headers=service.headers("ada"))
        url, cookie = base_url.replace("http", "ws") + "/v1/ws", {"Cookie": f"{COOKIE}={http.cookies[COOKIE]}"}
        async with connect(url, origin=base_url, additional_headers=cookie) as ws:
            await ws.send('{"type": "subscribe", "jobs": "mine"}')
            assert "subscribed" in await ws.recv()
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, origin="https://evil.example", additional_headers=cookie)
    assert refused.value.response.status_code == 403


async def test_behind_https_the_cookie_is_secure(stuck, door, guarded, refused):
    async with guarded() as service, door(service.app) as client:
        response = await client.post("https://door/v1/session", headers=service.headers("ada"))
    assert "Secure" in response.headers["Set-Cookie"]


# --- keys


async def test_an_admin_makes_a_key_that_works_at_once_and_ends_it(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:
        admin = service.headers("admin")
        body = {"name": "ci", "role": "viewer", "user": "bob", "expires_in_days": 3}
        made = (await client.post(KEYS, json=body, headers=admin)).json()
        bobs = {"Authorization": f"Bearer {made['key']}"}
        me = (await client.get(ME, headers=bobs)).json()
        listed = (await client.get(KEYS, headers=admin)).json()["data"]
        revoked = await client.delete(f"{KEYS}/{made['id']}", headers=admin)
        again = await client.delete(f"{KEYS}/{made['id']}", headers=admin)
        refused(await client.get(ME, headers=bobs), 401, "unauthenticated")
    assert (me["user"], me["role"]) == ("bob", "viewer")
    assert (listed[-1]["last_four"], listed[-1]["name"]) == (made["key"][-4:], "ci")
    assert made["key"] not in str(listed)
    assert "digest" not in str(listed)
    assert revoked.json()["revoked_at"] == again.json()["revoked_at"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "é"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "x", "role": "king"}, "role"),
        ({"name": "x", "user": "anonymous"}, "user"),
        ({"name": "x", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "x", "expiry": 1}, "expiry"),
    ],
)
async def test_a_bad_key_is_refused(guarded, door, refused, body, param):
    async with guarded() as service, door(service.app) as client:
        error = refused(await client.post(KEYS, json=body, headers=service.headers("admin")), 400, "invalid_value")
    assert error["param"] == param


async def test_the_first_key_closes_an_open_service_and_revoking_it_opens_nothing(guarded, stuck, door, refused):
    async with stuck() as service, door(service.app) as client:
        keys = service.app.state.door.access.keys
        assert (await client.get(ME)).json()["via"] == "open"
        refused(await client.post(KEYS, json={"name": "x"}), 401, "unauthenticated")
        from serve.access.keys import create

        text, key = create(keys.pepper, name="first", role="admin")
        await service.dispatcher.add_api_key(key)
        keys.forget()
        refused(await client.get(ME), 401, "unauthenticated")
        assert await status(client, {"Authorization": f"Bearer {text}"}) == 200
        await service.dispatcher.revoke_api_key(key.id)
        keys.forget()
        refused(await client.get(ME), 401, "unauthenticated")


async def test_a_revoked_key_ends_within_seconds_without_being_told(guarded, door):
    async with guarded() as service, door(service.app) as client:
        assert await status(client, service.headers("ada")) == 200
        (key,) = [key for key in await service.dispatcher.api_keys() if key.name == "ada"]
        await service.dispatcher.revoke_api_key(key.id)
        revoked_at = time.monotonic()
        while await status(client, service.headers("ada")) == 200:
            assert time.monotonic() - revoked_at < FRESH_S + 3


# --- metrics, open modes, roles


async def test_metrics_are_open_here_and_elsewhere_take_a_token(guarded, door, service, settings):
    from serve.api.app import create_app
    from serve.settings import Settings

    async def scraped(headers: dict[str, str], *, exposed: bool, token: str | None = None) -> int:
        async with guarded() as closed:
            changed = Settings(**settings.model_dump() | {"access": {"mode": "required", "metrics_token": token}})
            app = create_app(closed.dispatcher, service.assets, service.prompts, changed, exposed=exposed)
            app.add_api_route("/metrics", lambda: "up 1")
            async with door(app) as client:
                return await status(client, headers or closed.headers("user"), "/metrics")

    token = "t" * 16
    assert await scraped({}, exposed=False) == 200
    assert await scraped({}, exposed=True) == 403
    assert await scraped({"Authorization": f"Bearer {token}"}, exposed=True, token=token) == 200
    assert await scraped({"Authorization": f"Bearer {token[:-1]}"}, exposed=True, token=token) == 401
    assert await scraped({"Authorization": "Bearer é".encode()}, exposed=False, token=token) == 401


async def test_a_service_that_others_reach_asks_even_without_a_key(stuck, door, service, settings, refused):
    from serve.api.app import create_app
    from serve.settings import Settings

    async with stuck() as open_one:
        for access, expected in (({}, 401), ({"access": "open"}, 200)):
            changed = Settings(**settings.model_dump() | access)
            app = create_app(open_one.dispatcher, service.assets, service.prompts, changed, exposed=True)
            async with door(app) as client:
                assert await status(client, {}) == expected


async def test_a_role_may_lack_interactive(guarded, door, refused):
    async with guarded(roles={"user": {"interactive": False}}) as service, door(service.app) as client:
        ada = service.headers("ada")
        asked = {"prompt": "a fox", "priority": "interactive"}
        assert refused(await client.post("/v1/jobs", json=asked, headers=ada), 403, "forbidden")["param"] == "priority"
        key = {"Idempotency-Key": "k"}
        generating = client.post("/v1/images/generations", json={"prompt": "a fox"}, headers=ada | key, timeout=0.5)
        import asyncio

        task = asyncio.ensure_future(generating)
        await service.until(running=1)
        listed: list[dict] = []
        while not listed:  # it may run a moment before it is stored, and nobody hears of it until then
            listed = (await client.get("/v1/jobs", headers=ada)).json()["data"]
        (job,) = listed
        task.cancel()
    assert job["request"]["priority"] == "standard"


async def test_preset_only_may_not_draw_freely(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:
        headers = service.headers("preset_only")
        for path in ("/v1/jobs", "/v1/images/generations"):
            error = refused(await client.post(path, json={"prompt": "a fox"}, headers=headers), 403, "forbidden")
            assert error["param"] == "preset"
