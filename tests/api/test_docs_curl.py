"""Every shell block of docs/api.md is run as it stands there, and every route has one."""

import base64
import io
import json
import os
import re
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from tests.api.environments import ran

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^## ([A-Z]+ /\S+)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
KEYED = [block for block in BLOCKS if "$KEY" in block or "cookies" in block]
OPEN = [block for block in BLOCKS if block not in KEYED]
REFUSED = ("/load\n", "/unload\n", '"size": "1024x1024"}\'\n')


async def shell(block: str, base_url: str, folder: Path, **known: str) -> str:
    """What the block says; it must end well, or be one that shows a refusal."""
    command = block.replace("http://127.0.0.1:8000", base_url).replace("curl ", "curl -sS --fail-with-body ")
    code, output = await ran("sh", "-ec", command, cwd=folder, env=os.environ | known, seconds=120)
    assert (code != 0) is block.endswith(REFUSED), output[-2000:]
    return output


@pytest.mark.parametrize("route", [route for route in SECTIONS if "/auth/oidc/" not in route])  # a browser's
def test_every_route_has_one(route):
    method, path = route.split(" ")
    shown = re.escape(path).replace(r"\{id\}", r"[^/ \"'?]+")
    blocks = re.findall(r"^```sh\n(.*?)^```", SECTIONS[route], re.MULTILINE | re.DOTALL)
    fitting = [block for block in blocks if re.search(rf":8000{shown}[?\"' \n]", block)]
    assert fitting, f"no curl for {route}"
    asked = {_method(block) for block in fitting}
    assert method in asked


def _method(block: str) -> str:
    if named := re.search(r"-X ([A-Z]+)", block):
        return named[1]
    return "POST" if re.search(r" (-d|--data) ", block) else "GET"


@pytest_asyncio.fixture(loop_scope="session")
async def known(http) -> dict[str, str]:
    """A job that has ended, what it began with, and its picture."""
    begin = base64.b64encode(picture()).decode()
    body = {"prompt": "a red fox", "num_inference_steps": 1, "image": begin, "strength": 1}
    job = (await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})).json()
    [image] = job["result"]["images"]
    input_id = job["request"]["image"].removeprefix("input:")
    return {"ID": job["id"], "URL": image["url"], "ASSET_ID": image["asset_id"], "INPUT_ID": input_id}


def picture(alpha: int = 255) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (220, 90, 30, alpha)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("block", OPEN, ids=lambda block: re.sub(r"\W+", "-", block.split("8000")[-1])[:60])
async def test_a_block_works(base_url, http, tmp_path, known, block):
    if "confirm=17" in block:
        counted = await http.delete("/v1/assets", params={"all": True, "confirm": 0})
        block = block.replace("confirm=17", re.search(r"confirm=[0-9]+", counted.json()["error"]["hint"])[0])
    if "@fox.png" in block:
        (tmp_path / "fox.png").write_bytes(picture())
        (tmp_path / "mask.png").write_bytes(picture(alpha=0))
    try:
        output = await shell(block, base_url, tmp_path, **known)
    finally:
        await http.post("/v1/admin/resume")
    files = [path for path in tmp_path.iterdir() if path.stat().st_size]
    assert output or files or block.startswith("curl -X DELETE")
    assert output == "" or not output.startswith("<")


async def test_the_blocks_that_need_a_key_work_in_their_order(guarded, serving, tmp_path):
    async with guarded() as service, serving(service.app) as base_url:
        known = {"KEY": service.keys["admin"]}
        said = []
        for block in KEYED:
            said.append(await shell(block, base_url, tmp_path, **known))
            if '"csrf_token":"' in said[-1]:
                known["TOKEN"] = json.loads(said[-1])["csrf_token"]
            if '"key":"' in said[-1]:
                known["ID"] = json.loads(said[-1])["id"]
        async with httpx.AsyncClient(base_url=base_url) as http:
            assert (await http.get("/v1/me")).status_code == 401
    assert len(said) == 6
    assert '"revoked_at":' in said[-1]
    assert json.loads(said[-1])["revoked_at"] is not None


def test_no_block_is_left_out():
    assert len(BLOCKS) == len(OPEN) + len(KEYED) >= 57
    assert all("curl " in block for block in BLOCKS)
