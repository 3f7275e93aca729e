"""One node or several: jobs in SQLite, and pictures in a folder that is not shared, belong to one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from serve.errors import ConfigError
from serve.settings import Settings

HINT = (
    "set database to a PostgreSQL URL, and shared_data: true if every node sees the same data folder,"
    " or else assets to S3 and secret_key"
)


def home(settings: Settings) -> str | None:
    """The node on which all that touches the data must run; None when any may. Raises ConfigError for several."""
    nodes = alive()
    if not (reasons := bound(settings)) or not nodes:
        return None
    if len(nodes) > 1:
        raise ConfigError(f"Ray has {len(nodes)} nodes, but {' and '.join(reasons)}", param="data", hint=HINT)
    return nodes[0]


def bound(settings: Settings) -> list[str]:
    """What would be lost on another node."""
    jobs = [] if settings.database else ["jobs are in SQLite, which works on one only"]
    kept = settings.shared_data or settings.assets.store == "s3"
    pictures = [] if kept else ["pictures are in a folder of one"]
    signed = settings.shared_data or settings.secret_key is not None
    secret = [] if signed else ["the secret that signs links is made in a folder of one"]
    return jobs + pictures + secret


def stay(node: str | None) -> None:
    """Raises ConfigError on any other: Ray Serve then tries elsewhere."""
    if node is not None and (here := str(ray.get_runtime_context().get_node_id())) != node:
        raise ConfigError(f"the data is on node {node[:8]}, this replica was started on {here[:8]}", hint=HINT)


def warnings(node: str | None) -> tuple[str, ...]:
    """For people who have added nodes to a service that cannot use them."""
    others = [] if node is None else [name[:8] for name in alive() if name != node]
    return tuple(f"nothing runs on node {name}, as the data is on {str(node)[:8]}; {HINT}" for name in others)


def alive() -> list[str]:
    """Ids of Ray's nodes; none without Ray, as in local testing mode."""
    found: list[dict[str, Any]] = ray.nodes() if ray.is_initialized() else []
    return [str(node["NodeID"]) for node in found if node["Alive"]]


def given_up() -> bool:
    """Ray has declared the node of this process dead, which it never takes back; False as long as it cannot say."""
    if not ray.is_initialized():
        return False
    here = str(ray.get_runtime_context().get_node_id())
    with suppress(RayError):
        return any(str(node["NodeID"]) == here and not node["Alive"] for node in ray.nodes())
    return False


def session() -> str:
    """Names this run of Ray; empty without Ray."""
    return str(ray.get_runtime_context().get_session_name()) if ray.is_initialized() else ""
