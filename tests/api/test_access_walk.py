"""Every route as every caller. The routes are taken from the app, so that a new one cannot be forgotten here."""

import json

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from ulid import ULID
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve.api.rights import RIGHTS

STRANGERS = ("nobody", "revoked", "expired")
KNOWN = ("viewer", "preset_only", "user", "ada", "admin")
DRAWERS = KNOWN[1:]
EVERYBODY = STRANGERS + KNOWN

# Who is let in. Of "{job_id}" all others than its owner `ada` and admins are told 404.
ALLOWED = {
    "GET /": EVERYBODY,
    "GET /ui/{name}": EVERYBODY,
    "GET /ui/{version}/{name}": EVERYBODY,
    "GET /healthz": EVERYBODY,
    "GET /readyz": EVERYBODY,
    "GET /metrics": EVERYBODY,  # on loopback, without a token
    "GET /docs": KNOWN,
    "GET /docs/files/{name}": KNOWN,
    "GET /openapi.json": KNOWN,
    "GET /auth/methods": EVERYBODY,
    "GET /auth/oidc/login": EVERYBODY,
    "GET /auth/oidc/callback": EVERYBODY,
    "GET /auth/oidc/logout": EVERYBODY,
    "GET /v1/me": KNOWN,
    "POST /v1/session": KNOWN,
    "DELETE /v1/session": KNOWN,
    "GET /v1/models": KNOWN,
    "GET /v1/models/{model}": KNOWN,
    "GET /v1/queue": KNOWN,
    "GET /v1/stats": KNOWN,
    "GET /v1/presets": KNOWN,
    "GET /v1/presets/{preset}/picture": KNOWN,
    "GET /v1/styles/{style}/picture": KNOWN,
    "GET /v1/jobs": KNOWN,
    "GET /v1/jobs/{job_id}": KNOWN,
    "GET /v1/jobs/{job_id}/events": KNOWN,
    "GET /v1/assets": KNOWN,
    "GET /v1/assets/{asset_id}": KNOWN,
    "GET /v1/assets/{asset_id}/thumbnail": KNOWN,
    "GET /v1/assets/{asset_id}/metadata": KNOWN,
    "DELETE /v1/assets/{asset_id}": DRAWERS,
    "POST /v1/assets/delete": DRAWERS,
    "DELETE /v1/assets": DRAWERS,
    "GET /v1/webhook-secret": DRAWERS,
    "WS /v1/ws": KNOWN,
    "POST /v1/images/generations": DRAWERS,
    "POST /v1/images/edits": DRAWERS,
    "GET /v1/inputs/{input_id}": KNOWN,
    "POST /v1/jobs": DRAWERS,
    "POST /v1/jobs/{job_id}/rerun": DRAWERS,
    "POST /v1/jobs/{job_id}/cancel": DRAWERS,
    "DELETE /v1/jobs/{job_id}": DRAWERS,
    "POST /hf/text-to-image": DRAWERS,
    "POST /hf/models/{model}": DRAWERS,
    "GET /v2/health/live": EVERYBODY,
    "GET /v2/health/ready": EVERYBODY,
    "GET /v2": KNOWN,
    "GET /v2/models/stats": KNOWN,
    "GET /v2/models/{model}/stats": KNOWN,
    "GET /v2/models/{model}/versions/{version}/stats": KNOWN,
    "GET /v2/": KNOWN,
    "GET /v2/models/{model}": KNOWN,
    "GET /v2/models/{model}/versions/{version}": KNOWN,
    "GET /v2/models/{model}/config": KNOWN,
    "GET /v2/models/{model}/versions/{version}/config": KNOWN,
    "GET /v2/models/{model}/ready": KNOWN,
    "GET /v2/models/{model}/versions/{version}/ready": KNOWN,
    "POST /v2/models/{model}/infer": DRAWERS,
    "POST /v2/models/{model}/versions/{version}/infer": DRAWERS,
    "POST /v2/models/{model}/generate": DRAWERS,
    "POST /v2/models/{model}/versions/{version}/generate": DRAWERS,
    "POST /v2/models/{model}/generate_stream": DRAWERS,
    "POST /v2/models/{model}/versions/{version}/generate_stream": DRAWERS,
    "POST /v2/repository/index": KNOWN,
    "POST /v2/repository/models/{model}/load": KNOWN,
    "POST /v2/repository/models/{model}/unload": KNOWN,
    "GET /v1/admin/config": ("admin",),
    "POST /v1/admin/reload-config": ("admin",),
    "GET /v1/admin/queue": ("admin",),
    "POST /v1/admin/pause": ("admin",),
    "POST /v1/admin/resume": ("admin",),
    "GET /v1/admin/keys": ("admin",),
    "POST /v1/admin/keys": ("admin",),
    "DELETE /v1/admin/keys/{key_id}": ("admin",),
}
PLAIN = sorted(set(ALLOWED) - {"WS /v1/ws"})
OF_A_JOB = [route for route in PLAIN if "{job_id}" in route]


def routes(app) -> set[str]:
    found = set()
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount):
            found.add(f"GET {route.path}/{{name}}")
            continue
        for method in route.methods or ["WS"]:
            found.add(f"{method} {route.path}")
    return {route for route in found if not route.startswith(("HEAD ", "WS /docs/files"))}


async def ask(service, client: httpx.AsyncClient, route: str, name: str, job_id: str) -> httpx.Response:
    method, path = route.split(" ")
    if path.endswith("/events"):
        method = "HEAD"  # the stream of this job would never end
    path = path.replace("{job_id}", job_id).replace("{key_id}", "none").replace("{model}", "z-image-turbo")
    path = path.replace("{version}", "1").replace("{input_id}", "0" * 64)
    path = path.replace("{asset_id}", f"{job_id}-0")
    path = path.replace("{name}", "app.js" if path.startswith("/ui/") else "swagger-ui.css")
    client.cookies.clear()  # of a session that was made on the way
    return await client.request(method, path, headers=service.headers(name), json={} if method == "POST" else None)


def test_this_test_knows_every_route_and_so_does_the_gate(app):
    assert routes(app) == set(ALLOWED)
    assert routes(app) <= set(RIGHTS)


async def test_every_route_as_every_caller(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:
        for route in PLAIN:
            for name in EVERYBODY:
                job_id = await service.job() if "_id}" in route else ""
                response = await ask(service, client, route, name, job_id)
                error = code_of(response)
                at = (route, name, response.status_code, response.text[:300])
                if name in ALLOWED[route]:
                    foreign = "{job_id}" in route and name not in ("ada", "admin")
                    assert response.status_code not in (401, 500), at
                    assert error != "forbidden", at
                    nothing = ("{key_id}", "{asset_id}", "{input_id}", "/oidc/", "/picture")
                    absent = any(part in route for part in nothing)
                    assert (response.status_code == 404) is (foreign or absent), at
                elif name in STRANGERS:
                    assert response.status_code == 401, at
                else:
                    assert error == "forbidden", at


@pytest.mark.parametrize("route", OF_A_JOB)
@pytest.mark.parametrize("name", ["user", "viewer", "preset_only"])
async def test_anothers_job_is_told_exactly_as_one_that_is_not_there(guarded, door, route, name):
    async with guarded() as service, door(service.app) as client:
        job_id, unknown = await service.job(), str(ULID())
        theirs = await ask(service, client, route, name, job_id)
        nothing = await ask(service, client, route, name, unknown)
        owners = await client.get(f"/v1/jobs/{job_id}", headers=service.headers("ada"))
    assert theirs.status_code == nothing.status_code
    assert told(theirs) == told(nothing).replace(unknown, job_id)
    assert owners.json()["status"] in ("queued", "running")


def code_of(response: httpx.Response) -> str | None:
    is_json = response.content and response.headers["Content-Type"] == "application/json"
    answer = response.json() if is_json else {}
    error = answer.get("error") if isinstance(answer, dict) else None
    return answer.get("code") if isinstance(error, str) else (error or {}).get("code")


def told(response: httpx.Response) -> str:
    return response.text.replace(response.headers["X-Request-ID"], "")


async def test_lists_and_the_queue_show_ones_own(guarded, door):
    async with guarded() as service, door(service.app) as client:
        mine, theirs = await service.job("user"), await service.job("ada")
        found = {}
        for name, query in (("user", ""), ("admin", ""), ("admin", "?user=*"), ("admin", "?user=ada")):
            listed = (await client.get(f"/v1/jobs{query}", headers=service.headers(name))).json()["data"]
            found[name + query] = {job["id"] for job in listed}
        queue = (await client.get("/v1/queue", headers=service.headers("user"))).json()
        refusal = await client.get("/v1/jobs?user=ada", headers=service.headers("user"))
    assert found == {"user": {mine}, "admin": set(), "admin?user=*": {mine, theirs}, "admin?user=ada": {theirs}}
    assert [job["id"] for job in queue["my_jobs"]] == [mine]
    assert "secret" not in queue["my_jobs"][0]["id"]
    assert refusal.status_code == 403


async def test_idempotency_keys_of_two_users_are_two(guarded, door):
    async with guarded() as service, door(service.app) as client:
        ids = set()
        for name in ("user", "ada"):
            headers = service.headers(name) | {"Idempotency-Key": "same"}
            ids.add((await client.post("/v1/jobs", json={"prompt": "a fox"}, headers=headers)).json()["id"])
    assert len(ids) == 2


@pytest.mark.parametrize("name", STRANGERS)
async def test_the_socket_refuses_strangers(guarded, serving, name):
    async with guarded() as service, serving(service.app) as base_url:
        with pytest.raises(InvalidStatus) as refused:
            await connect(base_url.replace("http", "ws") + "/v1/ws", additional_headers=service.headers(name))
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "unauthenticated"


async def test_on_the_socket_anothers_job_is_not_there(guarded, serving):
    async with guarded() as service, serving(service.app) as base_url:
        job_id, unknown = await service.job(), str(ULID())
        url = base_url.replace("http", "ws") + "/v1/ws"
        async with connect(url, additional_headers=service.headers("user")) as ws:
            await ws.send(json.dumps({"type": "subscribe", "jobs": [job_id, unknown]}))
            heard = [json.loads(await ws.recv()) for _ in range(3)]
            await ws.send('{"type": "subscribe", "jobs": "mine"}')
            assert json.loads(await ws.recv()) == {"type": "subscribed", "jobs": "mine"}
    assert heard[0]["type"] == "subscribed"
    assert {one["job_id"]: one["error"]["code"] for one in heard[1:]} == {job_id: "not_found", unknown: "not_found"}


async def test_a_socket_is_closed_when_its_key_is_revoked(guarded, serving):
    async with guarded() as service, serving(service.app) as base_url:
        key = await service.key("short", user="ada")
        async with connect(
            base_url.replace("http", "ws") + "/v1/ws", additional_headers=service.headers("short")
        ) as ws:
            await service.dispatcher.revoke_api_key(key.id)
            with pytest.raises(ConnectionClosed) as closed:
                await ws.recv()
    assert closed.value.rcvd.code == 1008


async def test_a_new_route_without_an_entry_is_for_admins(guarded, door):
    async with guarded() as service, door(service.app) as client:
        service.app.add_api_route("/v1/new", lambda: "hello", methods=["GET"])
        statuses = {name: (await ask(service, client, "GET /v1/new", name, "")).status_code for name in EVERYBODY}
    assert statuses == dict.fromkeys(STRANGERS, 401) | dict.fromkeys(KNOWN[:-1], 403) | {"admin": 200}
