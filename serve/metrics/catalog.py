"""Every metric of ours by name: what it is, its labels, its buckets. docs/operations.md lists the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

WAIT_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
WORK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BY_NAME = {kind: ("model", kind) for kind in ("adapter", "controlnet")}  # the configured names, no others
MEMBERS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """`name` is the one that is scraped; seconds, bytes and ratios say so in it."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _kept(kind: str, one: str, many: str) -> tuple[Spec, ...]:
    """Of what replicas load by name when it is asked for."""
    name, labels = f"zimage_{kind}", BY_NAME[kind]
    load = "one load: its file read, checked and put on the device"
    return (
        Spec("counter", f"{name}_images_total", f"pictures with {one} in jobs that succeeded", labels),
        Spec("counter", f"{name}_loads_total", f"loads of {one} into a replica's memory", labels),
        Spec("counter", f"{name}_load_failures_total", f"loads of {one} that failed", labels),
        Spec("counter", f"{name}_evictions_total", f"{many} let go to make room for others", labels),
        Spec("histogram", f"{name}_load_duration_seconds", load, (), WORK_S),
        Spec("gauge", f"{name}_bytes", f"memory that {many} take on the replica's device", ("replica",)),
    )


CATALOG: tuple[Spec, ...] = (
    # the queue
    Spec("gauge", "zimage_queue_depth", "jobs that wait for their first step", ("model", "priority")),
    Spec("gauge", "zimage_queue_oldest_age_seconds", "age of the job that has waited longest; 0 when none", ("model",)),
    Spec("gauge", "zimage_jobs_running", "jobs that have begun and not ended", ("model",)),
    Spec(
        "gauge",
        "zimage_backlog_gpu_seconds",
        "work left in queued and running jobs, by measured step times",
        ("model",),
    ),
    # jobs
    Spec("counter", "zimage_jobs_total", "jobs that ended, by how", ("model", "priority", "status")),
    Spec("counter", "zimage_images_total", "pictures in jobs that succeeded", ("model", "format")),
    Spec(
        "counter",
        "zimage_refusals_total",
        "jobs refused before they were accepted, by error code",
        ("model", "reason"),
    ),
    Spec("counter", "zimage_cancellations_total", "jobs cancelled while queued or running", ("model", "phase")),
    Spec("counter", "zimage_job_retries_total", "new attempts of jobs whose replica was lost", ("model",)),
    Spec("counter", "zimage_cache_requests_total", "jobs by what the result cache did", ("model", "result")),
    Spec("histogram", "zimage_request_duration_seconds", "acceptance to success", ("model",), WAIT_S),
    Spec("histogram", "zimage_queue_duration_seconds", "acceptance to the first step", ("model",), WAIT_S),
    Spec(
        "histogram",
        "zimage_stage_duration_seconds",
        "one picture's time in a stage: encode, denoise, decode, file; a batch counts for each member",
        ("model", "stage"),
        WORK_S,
    ),
    Spec(
        "counter",
        "zimage_slo_jobs_total",
        "jobs by whether they ended within alpha x solo time",
        ("model", "alpha", "met"),
    ),
    # replicas
    Spec(
        "gauge",
        "zimage_replicas",
        "replicas that send heartbeats, by what they are doing",
        ("model", "deployment", "phase"),
    ),
    Spec(
        "counter",
        "zimage_replica_restarts_total",
        "replicas that were lost and had to be replaced; not those that were stopped on purpose",
        ("model", "deployment"),
    ),
    Spec("gauge", "zimage_warmup_seconds", "process start to ready, of replicas that are ready", ("replica",)),
    Spec("histogram", "zimage_step_duration_seconds", "one denoising step of a batch", ("model",), WORK_S),
    Spec("histogram", "zimage_batch_size", "members of a batch: encode, step, decode", ("model", "stage"), MEMBERS),
    Spec("gauge", "zimage_vram_used_bytes", "GPU memory in use by the replica's process", ("replica",)),
    Spec("gauge", "zimage_vram_reserved_bytes", "GPU memory that the replica's allocator holds", ("replica",)),
    Spec("gauge", "zimage_vram_total_bytes", "GPU memory of the replica's device", ("replica",)),
    Spec("gauge", "zimage_gpu_utilization_ratio", "share of time in which a kernel ran, 0 to 1", ("replica",)),
    Spec("gauge", "zimage_gpu_power_watts", "power that the replica's device draws", ("replica",)),
    # adapters and ControlNets
    *_kept("adapter", "an adapter", "adapters"),
    *_kept("controlnet", "a ControlNet", "ControlNets"),
    # the asset store, webhooks, quotas
    Spec("gauge", "zimage_store_free_bytes", "room in the local asset store; without a sample for S3"),
    Spec("gauge", "zimage_store_assets", "pictures in the asset store"),
    Spec("gauge", "zimage_store_bytes", "bytes of these pictures"),
    Spec("gauge", "zimage_cache_entries", "results that the cache can answer with"),
    Spec("counter", "zimage_webhook_deliveries_total", "attempts to deliver a webhook, by outcome", ("outcome",)),
    Spec("counter", "zimage_quota_charged_total", "charged against quotas, refunds not deducted", ("unit",)),
    # the HTTP door
    Spec("counter", "zimage_http_requests_total", "answers, by route and status", ("route", "status")),
    Spec("histogram", "zimage_http_request_duration_seconds", "request to end of answer", ("route",), WAIT_S),
    # the service
    Spec("gauge", "zimage_ready", "1 when pictures can be drawn", ("model",)),
    Spec("gauge", "zimage_uptime_seconds", "age of the Dispatcher; a restart is a counter reset"),
    Spec("gauge", "zimage_build_info", "1, labelled with what is running", ("version", "model", "engine")),
)
