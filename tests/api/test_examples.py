"""Every file of examples/ is run against the service: here, and each night with nothing but the packages it names."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serve.api.app import create_app
from serve.api.webhooks import open_courier
from serve.jobs.store import store_of
from serve.local import open_service
from serve.settings import Settings
from tests.api.environments import ROOT, environment, ran
from tests.ports import free_port

EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text()
DRAWING = {
    "openai_sync.py": ("openai",),
    "openai_stream.py": ("openai",),
    "jobs.py": ("httpx",),
    "huggingface.py": ("huggingface_hub>=2", "pillow"),
}
TRITON = ("tritonclient[http]",)
GRADIO = ("gradio", "httpx")


def given(base_url: str) -> dict[str, str]:
    return os.environ | {"ZIMAGE_URL": base_url, "HF_HUB_OFFLINE": "0", "GRADIO_ANALYTICS_ENABLED": "False"}


async def drawn(base_url: str, folder: Path, *command: str) -> str:
    path = folder / "picture.png"
    code, output = await ran(*command, "a red fox", str(path), env=given(base_url), seconds=120)
    assert code == 0, output[-4000:]
    with Image.open(path) as image:
        assert image.size == (128, 128)
    return output


def test_every_example_is_run_and_explained():
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    others = {"triton_client.py", "webhook_receiver.py", "gradio_app.py", "jobs.mjs", "curl.sh", "browser.html"}
    assert names == DRAWING.keys() | others
    assert {name for name in names if f"`{name}`" not in README} == set()


@pytest.mark.parametrize("name", DRAWING)
async def test_python(base_url, tmp_path, name):
    await drawn(base_url, tmp_path, sys.executable, str(EXAMPLES / name))


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "requirements"), DRAWING.items(), ids=DRAWING)
async def test_python_in_an_environment_of_its_own(base_url, tmp_path, name, requirements):
    await drawn(base_url, tmp_path, str(await environment(*requirements) / "python"), str(EXAMPLES / name))


async def test_hugging_faces_begins_with_a_picture_too(base_url, tmp_path):
    begin = tmp_path / "begin.png"
    Image.new("RGB", (128, 128), "navy").save(begin)
    code, output = await ran(
        *(sys.executable, str(EXAMPLES / "huggingface.py"), "a red fox", str(tmp_path / "fox.png"), str(begin)),
        env=given(base_url),
        seconds=120,
    )
    assert code == 0, output[-4000:]
    with Image.open(tmp_path / "fox.png") as image:
        assert image.size == (128, 128)


async def test_triton(base_url):
    await two_pictures(sys.executable, base_url)


@pytest.mark.nightly
async def test_triton_in_an_environment_of_its_own(base_url):
    await two_pictures(str(await environment(*TRITON) / "python"), base_url)


async def two_pictures(python: str, base_url: str) -> None:
    command = (python, str(EXAMPLES / "triton_client.py"), "a red fox", "a penguin")
    code, output = await ran(*command, env=given(base_url), seconds=120)
    assert (code, output.strip()) == (0, "(2, 128, 128, 3) [[0], [1]]")


async def test_javascript(base_url, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    output = await drawn(base_url, tmp_path, "node", str(EXAMPLES / "jobs.mjs"))
    assert output.splitlines()[-1].startswith("job.succeeded")


async def test_curl(base_url, tmp_path):
    output = await drawn(base_url, tmp_path, "sh", str(EXAMPLES / "curl.sh"))
    assert '"status":"succeeded"' in output


@pytest.mark.parametrize("requirements", [None, pytest.param(("standardwebhooks",), marks=pytest.mark.nightly)])
async def test_a_webhook_is_received_and_verified(settings, tmp_path, serving, requirements):
    python = sys.executable if requirements is None else str(await environment(*requirements) / "python")
    allowing = settings.webhooks.model_copy(update={"allow": ("127.0.0.1",), "allow_http": True})
    changed = settings.model_copy(update={"data": tmp_path, "webhooks": allowing})
    port = free_port()
    async with open_service(changed) as service:
        app = create_app(service, service.assets, service.prompts, changed)
        async with serving(app) as base_url, httpx.AsyncClient(base_url=base_url, timeout=90) as http:
            secret = (await http.get("/v1/webhook-secret")).json()["secret"]
            body = {"prompt": "a fox", "num_inference_steps": 1, "webhook_url": f"http://127.0.0.1:{port}/"}
            job = (await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})).json()
    receiver = await asyncio.create_subprocess_exec(
        *(python, "-u", str(EXAMPLES / "webhook_receiver.py"), str(port), secret),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await listening(port)
        async with delivering(changed), httpx.AsyncClient() as forger:
            told = await asyncio.wait_for(receiver.stdout.readline(), 60)
            forged = await forger.post(f"http://127.0.0.1:{port}/", json={"type": "job.succeeded"})
    finally:
        receiver.terminate()
        await receiver.wait()
    assert told.decode().split() == ["job.succeeded", job["id"]]
    assert forged.status_code == 401


@asynccontextmanager
async def delivering(settings: Settings) -> AsyncIterator[None]:
    """The courier of a cluster's Dispatcher, over the same store."""
    store = store_of(settings)
    await store.open()
    courier = open_courier(settings, store, lambda _: None)
    courier.open()
    try:
        yield
    finally:
        await courier.close()
        await store.close()


async def listening(port: int, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.1)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise AssertionError(f"nobody listens on port {port} after {seconds} s")


def test_the_gradio_front_end_is_short():
    assert len((EXAMPLES / "gradio_app.py").read_text().splitlines()) <= 40


@pytest.mark.nightly
async def test_gradio(base_url):
    """Through Gradio's own client, which does what its page does."""
    python = str(await environment(*GRADIO) / "python")
    port = free_port()
    app = await asyncio.create_subprocess_exec(
        *(python, str(EXAMPLES / "gradio_app.py")),
        env=given(base_url) | {"PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    asked = (
        "from gradio_client import Client, exceptions\n"
        f"client = Client('http://127.0.0.1:{port}', verbose=False)\n"
        "print(client.predict('a red fox', 4, api_name='/draw'))\n"
        "try: client.predict(' ', 4, api_name='/draw')\n"
        "except exceptions.AppError as error: print(error)\n"
    )
    try:
        await listening(port, 120)
        code, output = await ran(python, "-c", asked, env=given(base_url), seconds=120)
    finally:
        app.terminate()
        await app.wait()
    assert code == 0, output
    assert "ms, job 01" in output
    assert "prompt is blank" in output
