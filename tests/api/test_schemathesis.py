"""/openapi.json against a real server: schemathesis makes up requests, good and bad, and compares what is answered."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from serve.api.app import create_app
from serve.local import open_service
from serve.settings import Settings

CONFIG = Path(__file__).with_name("schemathesis.toml")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
)
PAUSE = "/v1/admin/pause"  # in the middle of the others it would make all that draw wait


async def fuzzed(url: str, folder: Path, *options: str) -> int:
    """The number of its cases, all of them without a finding."""
    report = folder / "report.json"
    how = ["--checks", ",".join(CHECKS), "--report", "json", "--report-json-path", str(report)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", f"{url}/openapi.json", *how, *options),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-8000:]
    return int(json.loads(report.read_text())["test_cases"]["generated"])


@pytest.fixture
def small(tmp_path) -> Settings:
    """All of the service, over pictures that are quickly drawn."""
    return Settings(
        data=tmp_path / "data",
        warmup_sizes_px=(64,),
        default_size_px=64,
        max_side_px=64,
        presets=None,
        default_steps=1,
        limits={"max_steps": 2, "max_n": 2, "body_bytes": 300_000},
        timeouts={"heartbeat_s": 60},
    )


async def fuzzed_service(small: Settings, serving, folder: Path, *options: str) -> int:
    async with open_service(small) as service:
        async with serving(create_app(service, service.assets, service.prompts, small)) as url:
            cases = await fuzzed(url, folder, "--exclude-path", PAUSE, *options)
            cases += await fuzzed(url, folder, "--include-path", PAUSE, "--phases", "coverage,fuzzing")
        status = await service.status()
    assert status.ready
    return cases


async def test_500_cases(small, serving, tmp_path):
    options = ("--phases", "examples,fuzzing,stateful", "--max-examples", "20", "--seed", "1")
    assert await fuzzed_service(small, serving, tmp_path, *options) >= 500


@pytest.mark.nightly
async def test_thousands_of_cases(small, serving, tmp_path):
    """Every boundary of every field, and another seed each night."""
    options = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100")
    assert await fuzzed_service(small, serving, tmp_path, *options) >= 2000
