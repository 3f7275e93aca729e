"""Whether the Ray that this process has started still lives: nothing brings its control plane or its node back."""

from __future__ import annotations

VITAL = {"gcs_server": "Ray's control plane (gcs_server)", "raylet": "Ray's node (raylet)"}


def lost() -> str | None:
    """What has ended without being told to, in words. Ray itself would notice after a minute, or never."""
    from ray._private import worker  # noqa: PLC0415 - no public function tells of these processes

    node = worker._global_node
    dead = [] if node is None else [name for name, _ in node.dead_processes()]
    return next((words for name, words in VITAL.items() if name in dead), None)
