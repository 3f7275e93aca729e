"""NVIDIA's load generators against the service, each in an environment of its own."""

import asyncio
import json
import os

import pytest

from tests.api.environments import ROOT, environment, ran

pytestmark = pytest.mark.nightly

MODEL = "z-image-turbo"
# The last wheels with the binary that start on Debian 12: later ones ask for glibc 2.38, from 2.62 on there is none.
PERF_ANALYZER = ("tritonclient[http]==2.50.0", "nvidia-cuda-runtime-cu12")


async def test_aiperf(base_url, tmp_path):
    aiperf = await environment("aiperf")
    code, output = await ran(
        *(str(aiperf / "aiperf"), "profile", "--model", MODEL, "--url", base_url),
        *("--endpoint-type", "image-generation", "--tokenizer", str(ROOT / "serve/engine/tiny/tokenizer")),
        *("--synthetic-input-tokens-mean", "8", "--request-count", "8", "--concurrency", "2", "--ui", "none"),
        env={name: value for name, value in os.environ.items() if not name.startswith("HF_")},  # offline: no folder
        cwd=tmp_path,
        seconds=300,
    )
    assert code == 0, output[-4000:]
    [report] = await asyncio.to_thread(lambda: list(tmp_path.glob("artifacts/*/profile_export_aiperf.json")))
    figures = json.loads(await asyncio.to_thread(report.read_text))
    assert figures["request_count"]["avg"] == 8
    assert figures["request_latency"]["avg"] > 0
    assert not figures.get("error_summary")


async def test_perf_analyzer(base_url, tmp_path):
    """Inputs that are left out of the data are left out of the requests; otherwise it makes up seeds and sizes."""
    bin_ = await environment(*PERF_ANALYZER)
    [cuda] = await asyncio.to_thread(lambda: list(bin_.parent.glob("lib/*/site-packages/nvidia/cuda_runtime/lib")))
    env = os.environ | {"LD_LIBRARY_PATH": str(cuda)}
    _, linked = await ran("ldd", str(bin_ / "perf_analyzer"), env=env)
    if "not found" in linked:
        pytest.skip(f"perf_analyzer does not start here: {linked[linked.index('not found') - 60 :][:80]}")
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"prompt": ["a red fox"]}, {"prompt": ["a penguin"]}]}))
    code, output = await ran(
        *(str(bin_ / "perf_analyzer"), "-m", MODEL, "-u", base_url.removeprefix("http://"), "-i", "http"),
        *("--input-data", str(data), "-b", "3", "--concurrency-range", "1:2", "--max-trials", "10"),
        *("--measurement-mode", "count_windows", "--measurement-request-count", "4", "-s", "999"),
        env=env,
        cwd=tmp_path,
        seconds=300,
    )
    assert code == 0, output[-4000:]
    assert output.count("Successful request count") >= 2
    for part in ("text_encoder", "denoiser"):
        assert part in output
