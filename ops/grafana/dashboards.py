"""Writes the Grafana dashboard beside it: `python ops/grafana/dashboards.py`. Said here, JSON is derived."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "[$__rate_interval]"
COLUMNS = 24

Kind = Literal["timeseries", "stat", "heatmap", "gauge"]


@dataclass(frozen=True)
class Panel:
    """`queries` are expressions with their legends; `unit` is Grafana's."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    help: str = ""
    most: float | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]
    height: int = 8


def quantile(q: float, metric: str, by: str = "le") -> str:
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{RATE})))"


def mean(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}_sum{RATE})) / sum by ({by}) (rate({metric}_count{RATE}))"


def attained(alpha: int, over: str) -> str:
    done = f'sum(increase(zimage_slo_jobs_total{{alpha="{alpha}",met="true"}}[{over}]))'
    return f'{done} / sum(increase(zimage_slo_jobs_total{{alpha="{alpha}"}}[{over}]))'


def kept(title: str, kind: str) -> Row:
    """Of what replicas load by name when it is asked for."""
    name = f"zimage_{kind}"
    loads = (
        (f"sum by ({kind}) (increase({name}_loads_total{RATE}))", f"{{{{{kind}}}}}"),
        (f"sum(increase({name}_evictions_total{RATE}))", "evictions"),
        (f"sum(increase({name}_load_failures_total{RATE}))", "failures"),
    )
    images = ((f"sum by ({kind}) (rate({name}_images_total{RATE}))", f"{{{{{kind}}}}}"),)
    too_small = f"as many evictions as loads, all the time: {kind}_bytes is too small"
    return Row(
        title,
        (
            Panel(f"Pictures by {kind}", images, width=6),
            Panel("Loads", loads, width=6, help=too_small),
            Panel("One load", ((quantile(0.95, f"{name}_load_duration_seconds"), "p95"),), "s", width=6),
            Panel("Memory", ((f"{name}_bytes", "{{replica}}"),), "bytes", width=6),
        ),
    )


OVERVIEW = (
    Row(
        "Promises",
        (
            Panel(
                "Within 5 × solo time", ((attained(5, "$__range"), ""),), "percentunit", "stat", 4, "objective: 95 %"
            ),
            Panel("Within 3 × solo time", ((attained(3, "$__range"), ""),), "percentunit", "stat", 4),
            Panel("Ready", (("zimage_ready", "{{model}}"),), "bool_yes_no", "stat", 4),
            Panel("Pictures per minute", ((f"60 * sum(rate(zimage_images_total{RATE}))", ""),), "short", "stat", 4),
            Panel("Waiting", (("sum by (model) (zimage_queue_depth)", "{{model}}"),), "short", "stat", 4),
            Panel(
                "Wait of a new job",
                (
                    (
                        "sum by (model) (zimage_backlog_gpu_seconds) /"
                        ' clamp_min(sum by (model) (zimage_replicas{deployment="Denoiser",phase="ready"}), 1)',
                        "{{model}}",
                    ),
                ),
                "s",
                "stat",
                4,
                "work ahead in GPU-seconds over live denoisers",
            ),
        ),
        4,
    ),
    Row(
        "Jobs",
        (
            Panel("Jobs by end", ((f"sum by (status) (rate(zimage_jobs_total{RATE}))", "{{status}}"),), "reqps"),
            Panel("Refused", ((f"sum by (reason) (rate(zimage_refusals_total{RATE}))", "{{reason}}"),), "reqps"),
            Panel(
                "Cancelled, tried again",
                (
                    (f"sum by (phase) (rate(zimage_cancellations_total{RATE}))", "cancelled while {{phase}}"),
                    (f"sum(rate(zimage_job_retries_total{RATE}))", "tried again"),
                ),
                "reqps",
            ),
        ),
    ),
    Row(
        "Latency",
        (
            Panel(
                "Acceptance to success",
                ((f"sum by (le) (increase(zimage_request_duration_seconds_bucket{RATE}))", "{{le}}"),),
                "s",
                "heatmap",
            ),
            Panel(
                "Acceptance to success, quantiles",
                tuple((quantile(q, "zimage_request_duration_seconds"), f"p{100 * q:.0f}") for q in (0.5, 0.95, 0.99)),
                "s",
            ),
            Panel("Where a picture's time goes", ((mean("zimage_stage_duration_seconds", "stage"), "{{stage}}"),), "s"),
        ),
    ),
    Row(
        "Queue",
        (
            Panel("Waiting by priority", (("sum by (priority) (zimage_queue_depth)", "{{priority}}"),)),
            Panel(
                "Wait for the first step",
                (
                    ("zimage_queue_oldest_age_seconds", "oldest that waits, {{model}}"),
                    (quantile(0.5, "zimage_queue_duration_seconds"), "p50"),
                    (quantile(0.95, "zimage_queue_duration_seconds"), "p95"),
                ),
                "s",
            ),
            Panel(
                "Backlog",
                (
                    ("zimage_backlog_gpu_seconds", "GPU-seconds, {{model}}"),
                    ("zimage_jobs_running", "jobs running, {{model}}"),
                ),
            ),
        ),
    ),
    Row(
        "Batching",
        (
            Panel("Members of a batch, mean", ((mean("zimage_batch_size", "stage"), "{{stage}}"),)),
            Panel(
                "One step",
                tuple((quantile(q, "zimage_step_duration_seconds"), f"p{100 * q:.0f}") for q in (0.5, 0.99)),
                "s",
            ),
            Panel(
                "Cache",
                (
                    (f"sum by (result) (rate(zimage_cache_requests_total{RATE}))", "{{result}}"),
                    ("zimage_cache_entries", "entries"),
                ),
            ),
        ),
    ),
    kept("Adapters", "adapter"),
    kept("ControlNets", "controlnet"),
    Row(
        "GPU",
        (
            Panel(
                "Memory",
                (
                    ("zimage_vram_used_bytes", "used {{replica}}"),
                    ("zimage_vram_reserved_bytes", "reserved {{replica}}"),
                    ("zimage_vram_total_bytes", "total {{replica}}"),
                ),
                "bytes",
            ),
            Panel("Utilisation", (("nv_gpu_utilization", "{{gpu_uuid}}"),), "percentunit", most=1.0),
            Panel("Power", (("nv_gpu_power_usage", "{{gpu_uuid}}"),), "watt", width=4),
            Panel(
                "Pictures per kWh",
                (
                    (
                        f"3.6e6 * sum(rate(zimage_images_total{RATE})) / sum(avg_over_time(nv_gpu_power_usage{RATE}))",
                        "",
                    ),
                ),
                width=4,
                help="what a kilowatt-hour of the GPUs draws",
            ),
        ),
    ),
    Row(
        "Replicas",
        (
            Panel(
                "Replicas",
                (
                    (
                        "sum by (model, deployment, phase) (zimage_replicas) > 0",
                        "{{model}} {{deployment}} {{phase}}",
                    ),
                ),
            ),
            Panel(
                "Lost",
                (
                    (
                        f"sum by (model, deployment) (increase(zimage_replica_restarts_total{RATE}))",
                        "{{model}} {{deployment}}",
                    ),
                ),
            ),
            Panel("Process start to ready", (("zimage_warmup_seconds", "{{replica}}"),), "s"),
        ),
    ),
    Row(
        "HTTP",
        (
            Panel("Answers", ((f"sum by (status) (rate(zimage_http_requests_total{RATE}))", "{{status}}"),), "reqps"),
            Panel(
                "p95 by route",
                ((quantile(0.95, "zimage_http_request_duration_seconds", "le, route"), "{{route}}"),),
                "s",
            ),
            Panel(
                "Webhooks",
                ((f"sum by (outcome) (rate(zimage_webhook_deliveries_total{RATE}))", "{{outcome}}"),),
                "reqps",
            ),
        ),
    ),
    Row(
        "Asset store",
        (
            Panel("Pictures", (("zimage_store_assets", ""),)),
            Panel("Bytes", (("zimage_store_bytes", "pictures"), ("zimage_store_free_bytes", "free")), "bytes"),
            Panel("Charged to quotas", ((f"sum by (unit) (rate(zimage_quota_charged_total{RATE}))", "{{unit}}"),)),
        ),
    ),
    Row(
        "Ray",
        (
            Panel(
                "Replicas that Serve calls healthy",
                (("sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}}"),),
            ),
            Panel(
                "CPU of the nodes",
                (("avg by (instance) (ray_node_cpu_utilization) / 100", "{{instance}}"),),
                "percentunit",
            ),
            Panel("Memory of the nodes", (("sum by (instance) (ray_node_mem_used)", "{{instance}}"),), "bytes"),
        ),
    ),
)


def dashboard(title: str, uid: str, rows: tuple[Row, ...]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "type": "row",
                "title": row.title,
                "id": len(panels) + 1,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        x = 0
        for panel in row.panels:
            place = {"x": x, "y": y + 1, "w": panel.width, "h": row.height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x += panel.width
        assert x <= COLUMNS, f"row {row.title!r} is {x} columns wide"
        y += 1 + row.height
    return {
        "title": title,
        "uid": uid,
        "schemaVersion": 39,
        "tags": ["zimage"],
        "timezone": "browser",
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}]
        },
        "panels": panels,
    }


def _panel(panel: Panel, id: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "id": id,
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0} | ({} if panel.most is None else {"max": panel.most}),
            "overrides": [],
        },
        "targets": [
            _target(panel, expr, legend, ref) for (expr, legend), ref in zip(panel.queries, "ABCD", strict=False)
        ],
    }


def _target(panel: Panel, expr: str, legend: str, ref: str) -> dict[str, Any]:
    target: dict[str, Any] = {"expr": expr, "refId": ref, "datasource": DATASOURCE}
    if legend:
        target["legendFormat"] = legend
    if panel.kind == "heatmap":
        target["format"] = "heatmap"
    if panel.kind == "stat":
        target["instant"] = True
    return target


DASHBOARDS = {"overview.json": dashboard("Z-Image serving", "zimage-overview", OVERVIEW)}


def written(board: dict[str, Any]) -> str:
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, board in DASHBOARDS.items():
        (HERE / name).write_text(written(board))
