"""The registry, what is counted far away, and Triton's counting rules."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.errors import QueueFull
from serve.jobs.accounting import Accounting
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.jobs.status import snapshot_of
from serve.messages import (
    Canceled,
    ErrorInfo,
    Failed,
    Generated,
    GpuState,
    Phase,
    ReplicaState,
    StoredImage,
    Succeeded,
)
from serve.metrics.catalog import CATALOG
from serve.metrics.registry import Snapshot
from serve.metrics.statistics import Statistics
from serve.metrics.tally import Deduplicated, Recorder
from serve.metrics.triton import TRITON_NAMES
from tests.unit.replicas import order

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def values(accounting: Accounting) -> dict[str, float]:
    """Every sample, as `name{label="value",…}`."""
    families = text_string_to_metric_families(accounting.registry.render())
    return {_series(sample.name, sample.labels): sample.value for family in families for sample in family.samples}


def _series(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def accounting(**gauges: float) -> Accounting:
    now = Snapshot({(name, ()): value for name, value in gauges.items()})
    return Accounting([Statistics("m")], lambda: now, lambda _: 100.0)


def generated(image: int = 0, executions: float = 1.0) -> Generated:
    stored = StoredImage(asset_id=f"a-{image}", seed=1, width=128, height=128, format="png", bytes=9)
    return Generated(
        image=stored, started_at=0.0, encode_s=0.01, denoise_s=0.5, decode_s=0.1, file_s=0.05, executions=executions
    )


def finished(books: Accounting, n: int = 1, executions: float = 1.0, **names: str) -> Job:
    submission = order(n=n)
    job = Job(replace(submission, request=replace(submission.request, **names)))
    job.begin(job.created_at + 0.2)
    for image in range(n):
        answer = generated(image, executions)
        books.generated(job, answer)
        job.finished[image] = answer
    job.close(Succeeded, images=tuple(answer.image for answer in job.finished.values()), timings=job.timings())
    books.ended(job)
    return job


def ended(books: Accounting, kind: type, **data: object) -> None:
    job = Job(order())
    job.close(kind, **data)
    books.ended(job)


def test_every_metric_of_the_catalog_is_declared_before_anything_happens():
    text = accounting().registry.render()
    missing = [spec.name for spec in CATALOG if f"# TYPE {spec.name} " not in text]
    assert missing == []


def test_all_of_tritons_metrics_are_declared():
    text = accounting().registry.render()
    assert [name for name in TRITON_NAMES if f"# TYPE {name} " not in text] == []


def test_a_gauge_without_a_value_has_no_sample():
    assert not any(name.startswith("zimage_vram") for name in values(accounting()))


def test_gauges_are_asked_for_once_a_scrape():
    asked = []
    now = Snapshot({("zimage_ready", ("m",)): 1.0})
    books = Accounting([Statistics("m")], lambda: asked.append(1) or now, lambda _: 1.0)  # type: ignore[func-returns-value]
    assert values(books)["zimage_ready{model=m}"] == 1.0
    assert len(asked) == 1


def test_a_request_of_three_pictures_is_one_success_and_three_inferences():
    books = accounting()
    finished(books, n=3)
    seen = values(books)
    assert seen["nv_inference_request_success{model=m,version=1}"] == 1
    assert seen["nv_inference_count{model=m,version=1}"] == 3
    assert seen["nv_inference_count{model=denoiser,version=1}"] == 3


@pytest.mark.parametrize("kind", ["adapter", "controlnet"])
def test_pictures_are_counted_by_their_adapter_and_controlnet(kind: str):
    books = accounting()
    finished(books, n=2, **{kind: "blue"})
    finished(books)
    seen = values(books)
    with_one = {name: value for name, value in seen.items() if f"zimage_{kind}_images_total" in name}
    assert with_one == {f"zimage_{kind}_images_total{{{kind}=blue,model=m}}": 2}
    assert seen["zimage_images_total{format=png,model=m}"] == 3


def test_pictures_that_share_their_steps_share_an_execution():
    books = accounting()
    finished(books, n=3, executions=1 / 3)
    assert values(books)["nv_inference_exec_count{model=m,version=1}"] == 1


def test_queue_and_stages_are_observed():
    books = accounting()
    finished(books)
    seen = values(books)
    assert seen["zimage_queue_duration_seconds_sum{model=m}"] == pytest.approx(0.2, abs=0.21)
    assert seen["zimage_stage_duration_seconds_sum{model=m,stage=denoise}"] == 0.5
    assert seen["zimage_stage_duration_seconds_count{model=m,stage=file}"] == 1


def test_failures_have_reasons_and_no_success():
    books = accounting()
    books.refused(QueueFull("full"), "m")
    ended(books, Canceled)
    ended(books, Failed, error=ErrorInfo(status=500, code="x", type="y", message="z"))
    seen = values(books)
    failures = {
        reason: seen[f"nv_inference_request_failure{{model=m,reason={reason},version=1}}"]
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert failures == {"REJECTED": 1, "CANCELED": 1, "BACKEND": 1, "OTHER": 0}
    assert seen["nv_inference_request_success{model=m,version=1}"] == 0
    assert seen["zimage_refusals_total{model=m,reason=queue_full}"] == 1
    assert seen["zimage_cancellations_total{model=m,phase=queued}"] == 1


def test_slo_counts_refusals_as_missed_and_cancellations_not_at_all():
    books = accounting()
    finished(books)
    books.refused(QueueFull("full"), "m")
    ended(books, Canceled)
    seen = values(books)
    assert seen["zimage_slo_jobs_total{alpha=3,met=true,model=m}"] == 1
    assert seen["zimage_slo_jobs_total{alpha=3,met=false,model=m}"] == 1


def test_what_was_counted_elsewhere_arrives_once():
    recorder, books, seen = Recorder(), accounting(), Deduplicated()
    recorder.count("zimage_http_requests_total", "/v1/jobs", "200")
    recorder.count("zimage_http_requests_total", "/v1/jobs", "200")
    recorder.observe("zimage_http_request_duration_seconds", 0.5, "/v1/jobs")
    tally = recorder.drain()
    assert tally is not None
    for _ in range(2):
        if seen.new("gateway", tally):
            books.registry.apply(tally)
    told = values(books)
    assert told["zimage_http_requests_total{route=/v1/jobs,status=200}"] == 2
    assert told["zimage_http_request_duration_seconds_count{route=/v1/jobs}"] == 1
    assert recorder.drain() is None


def test_replicas_say_what_they_know_and_no_more():
    gpu = GpuState(uuid="GPU-1", utilization=None, power_w=350.0, memory_used=5, memory_total=9)
    fleet = Fleet(2.0)
    fleet.beat(
        ReplicaState(replica_id="d1", role="denoiser", phase=Phase.READY, vram_used=3, gpu=gpu, adapter_bytes=0), 0.0
    )
    fleet.beat(ReplicaState(replica_id="d2", role="denoiser", phase=Phase.READY, controlnet_bytes=7), 0.0)
    fleet.beat(ReplicaState(replica_id="t1", role="text_encoder", phase=Phase.LOADING), 0.0)
    gauges = snapshot_of(fleet, [], "m", 1.0).gauges
    assert gauges["zimage_replicas", ("m", "Denoiser", "ready")] == 2
    assert gauges["zimage_replicas", ("m", "TextEncoder", "loading weights")] == 1
    assert gauges["zimage_vram_used_bytes", ("d1",)] == 3
    assert gauges["zimage_adapter_bytes", ("d1",)] == 0
    assert gauges["zimage_controlnet_bytes", ("d2",)] == 7
    assert ("zimage_controlnet_bytes", ("d1",)) not in gauges
    assert ("zimage_gpu_utilization_ratio", ("d1",)) not in gauges
    assert gauges["zimage_gpu_power_watts", ("d1",)] == 350.0


def test_the_queue_is_counted_by_priority():
    waiting = [Job(order(priority="batch")), Job(order()), Job(order())]
    snapshot = snapshot_of(Fleet(2.0), waiting, "m", 1.0)
    depth = {labels[1]: value for (name, labels), value in snapshot.gauges.items() if name == "zimage_queue_depth"}
    assert depth == {"interactive": 2, "standard": 0, "batch": 1}
    assert snapshot.pending == {"m": 0, "text_encoder": 0, "denoiser": 3}


def test_a_device_shared_by_replicas_is_told_once():
    gpu = GpuState(uuid="GPU-1", utilization=0.5, power_w=None, memory_used=5, memory_total=9)
    states = [ReplicaState(replica_id=name, role="denoiser", phase=Phase.READY, gpu=gpu) for name in ("d1", "d2")]
    seen = values(Accounting([Statistics("m")], lambda: Snapshot({}, states, {"m": 0, "denoiser": 2}), lambda _: 1.0))
    assert seen["nv_gpu_utilization{gpu_uuid=GPU-1}"] == 0.5
    assert not any(name.startswith("nv_gpu_power_usage") for name in seen)
    assert seen["nv_inference_pending_request_count{model=denoiser,version=1}"] == 2


def test_operations_lists_every_metric_as_it_is():
    listed = re.findall(r"^\| `((?:zimage|nv)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    said = [
        (spec.name, spec.kind, ", ".join(f"`{label}`" for label in spec.labels) or "–", spec.help) for spec in CATALOG
    ]
    assert listed == said
    assert [name for name in TRITON_NAMES if f"`{name}`" not in DOCS.read_text()] == []


def test_the_dashboard_is_what_its_source_says():
    folder = Path("ops/grafana")
    source = runpy.run_path(str(folder / "dashboards.py"))
    for name, board in source["DASHBOARDS"].items():
        assert (folder / name).read_text() == source["written"](board)


def test_panels_and_alerts_ask_for_metrics_that_there_are():
    known = {spec.name for spec in CATALOG} | set(TRITON_NAMES)
    known |= {
        f"{spec.name}_{part}" for spec in CATALOG if spec.kind == "histogram" for part in ("bucket", "sum", "count")
    }
    asked = re.findall(r"\b((?:zimage|nv)_[a-z_]+)\b", Path("ops/grafana/overview.json").read_text())
    asked += re.findall(r"\b(zimage_[a-z_]+)\b", Path("ops/alerts.yml").read_text())
    assert set(asked) <= known


def test_the_rules_pass_their_own_tests():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    for command in (["test", "rules", "ops/alerts.test.yml"], ["check", "config", "ops/prometheus.yml"]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
