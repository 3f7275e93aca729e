"""To zero and back: quiet takes the last Denoiser away, and the first job is told the truth and gets its picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve.jobs.wake import PROCESS_S
from tests.cluster.deploying import of
from tests.cluster.server import ROOT, Server

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

BODY = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 4, "cache": "skip"}
TO_ZERO = {"min_replicas": 0, "initial_replicas": 1, "max_replicas": 1, "upscale_delay_s": 0, "downscale_delay_s": 0}
ENDED = ("succeeded", "failed", "canceled", "expired")
ASLEEP_S = ENDS_S = 120.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["autoscaling_policy"] = {"policy_function": "deployments.autoscaling:policy"}
    application["args"] |= {"warmup_sizes_px": [64], "autoscaling": {"drain_s": 2.0, "quiet_s": 4.0}}
    denoiser = of(application, "Denoiser")
    del denoiser["num_replicas"]
    denoiser["autoscaling_config"] = TO_ZERO
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    server = Server.start(tmp_path, tmp_path / "serve.yaml")
    yield server
    server.stop()


def test_the_first_job_wakes_a_denoiser_and_its_estimate_says_so(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        fall_asleep(server)
        told_s, took_s = first_picture(client)
        assert told_s > PROCESS_S, "a process has to start"
        assert took_s < 10 * told_s

        fall_asleep(server)  # and this time it knows how long that takes
        hopeless = client.post("/v1/jobs", json=BODY | {"deadline_ms": 500})
        assert hopeless.status_code == 503
        assert hopeless.json()["error"]["code"] == "deadline_infeasible"
        told_again_s, _ = first_picture(client)
        assert took_s / 4 < told_again_s < took_s * 2, "as long as it took"

        metrics = client.get("/metrics").text
    assert 'zimage_replica_restarts_total{deployment="Denoiser",model="z-image-turbo"} 0.0' in metrics


def fall_asleep(server: Server) -> None:
    def gone() -> bool:
        return not server.replicas("Denoiser") and server.state()["phase"] == "asleep"

    server.wait_until(gone, ASLEEP_S, "the last Denoiser is given up")
    state = server.state()
    assert (state["ready"], state["denoisers"]) == (True, 0), state


def first_picture(client: httpx.Client) -> tuple[float, float]:
    """Seconds that were told, and seconds that it took."""
    began = time.monotonic()
    answer = client.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    told_s = float(job["queue"]["eta_seconds"])
    deadline = began + ENDS_S
    while job["status"] not in ENDED:
        assert time.monotonic() < deadline, job
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 10}).json()
    assert job["status"] == "succeeded", job
    return told_s, time.monotonic() - began
