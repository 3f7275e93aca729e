"""The examples of docs/api.md for other protocols' clients, as they stand there."""

import asyncio
import re
from pathlib import Path

import pytest

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
CURL = [block for block in re.findall(r"```sh\n(curl.*?)```", DOCS, re.DOTALL) if re.search(r":8000/(v2|hf)", block)]
SHELL = [block for block in CURL if "@fox.png" not in block]  # what needs a picture is in test_docs_curl.py
PYTHON = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if re.search("triton|hugging", block)]
REFUSED = ("/load", "/unload")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Tests are kept off the hub; these go to the loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("command", SHELL)
async def test_curl(base_url, tmp_path, command):
    command = command.replace("http://127.0.0.1:8000", base_url).replace("curl", "curl -sS --fail-with-body", 1)
    process = await asyncio.create_subprocess_shell(command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode != 0) is command.strip().endswith(REFUSED), output[:300]
    assert output or (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("code", PYTHON)
async def test_python(base_url, code):
    known: dict[str, object] = {}
    await asyncio.to_thread(exec, code.replace("127.0.0.1:8000", base_url.removeprefix("http://")), known)
    assert {"pixels", "image"} & known.keys()


def test_there_are_examples():
    assert len(SHELL) >= 14
    assert len(PYTHON) == 2
