"""Two Gateways under load while presets change: by their file, by the API, and by Ray Serve's `user_config`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.cluster.deploying import deploy, of
from tests.cluster.server import ROOT, Server

pytestmark = pytest.mark.cluster

PRESETS = {
    "presets": [
        {
            "name": "sticker",
            "title": {"en": "Sticker", "zh": "贴纸"},
            "prompt": "{prompt} on a white background",
            "size": "64x64",
            "num_inference_steps": 2,
        }
    ]
}
BODY = {"prompt": "a fox", "preset": "sticker"}
RELOADS = 50


def text(title: str, **more: object) -> str:
    preset = PRESETS["presets"][0] | {"title": {"en": title, "zh": title}} | more
    return yaml.safe_dump({"presets": [preset]}, allow_unicode=True)


def save(file: Path, content: str) -> None:
    scratch = file.with_name("scratch")
    scratch.write_text(content)
    scratch.replace(file)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("presets") / "presets.yaml"
    path.write_text(text("first"))
    return path


@pytest.fixture(scope="module")
def two(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"presets": str(file), "warmup_sizes_px": [64]}
    next(entry for entry in application["deployments"] if entry["name"] == "Gateway")["num_replicas"] = 2
    data = tmp_path_factory.mktemp("data")
    (data / "two.yaml").write_text(yaml.safe_dump(config))
    server = Server.start(data, data / "two.yaml")
    yield server
    server.stop()


@pytest.fixture
async def client(two: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=two.url, timeout=60) as client:
        yield client


async def titles(client: httpx.AsyncClient) -> set[str]:
    """As twenty answers have them: with two Gateways behind the proxy, both are asked."""
    answers = await asyncio.gather(*(client.get("/v1/presets") for _ in range(20)))
    return {answer.json()["data"][0]["title"]["en"] for answer in answers}


async def all_show(client: httpx.AsyncClient, title: str, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while await titles(client) != {title}:
            await asyncio.sleep(0.1)


def gateways(two: Server) -> set[int]:
    processes = psutil.Process(two.process.pid).children(recursive=True)
    return {p.pid for p in processes if "".join(p.cmdline()).startswith("ray::ServeReplica:zimage:Gateway")}


async def test_all_gateways_see_a_saved_file(client: httpx.AsyncClient, file: Path) -> None:
    save(file, text("saved"))
    await all_show(client, "saved")


async def test_reloads_under_load_fail_no_request(client: httpx.AsyncClient, file: Path) -> None:
    statuses: list[int] = []
    reloads: list[int] = []

    async def ask() -> None:
        while len(reloads) < RELOADS:
            statuses.append((await client.post("/v1/images/generations", json=BODY)).status_code)
            statuses.append((await client.post("/v1/jobs", json=BODY)).status_code)
            statuses.append((await client.get("/v1/presets")).status_code)

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for i in range(RELOADS):
        save(file, text("bad", sise="64x64") if i % 2 else text(f"reload {i}"))
        answer = await client.post("/v1/admin/reload-config")
        reloads.append(answer.status_code)
        if i % 2:
            assert "presets[0].sise: unknown key; did you mean 'size'?" in answer.json()["error"]["message"]
    await asyncio.gather(*asking)
    assert reloads == [200, 400] * (RELOADS // 2)
    assert statuses
    assert set(statuses) <= {200, 202}
    save(file, text("last"))  # as a Gateway may have found only the bad one that came after a good one
    await all_show(client, "last")


async def test_user_config_changes_running_gateways(two: Server, client: httpx.AsyncClient) -> None:
    before = gateways(two)
    assert len(before) == 2
    give(two, yaml.safe_load(text("by user_config")))
    await all_show(client, "by user_config")
    give(two, yaml.safe_load(text("bad", sise="64x64")))
    async with asyncio.timeout(30):
        while not (refused := (await client.get("/v1/presets")).json()["version"]["refused"]):
            await asyncio.sleep(0.1)
    assert "presets[0].sise" in refused["message"]
    assert await titles(client) == {"by user_config"}
    assert (await client.post("/v1/images/generations", json=BODY)).status_code == 200
    assert gateways(two) == before


def give(two: Server, presets: object) -> None:
    deploy(two, lambda application: of(application, "Gateway").update(user_config={"presets": presets}))
