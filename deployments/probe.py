"""Starts a Ray as `make serve` does, has it run one task, and ends it: what `zimage doctor --deep` asks."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from deployments.run import OBJECT_STORE_BYTES, set_environment


def _process() -> int:
    return os.getpid()


def main() -> None:
    set_environment()
    with tempfile.TemporaryDirectory(prefix="zp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder, "ray_token")
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_TOKEN_PATH": str(token)}
        import ray  # noqa: PLC0415 - reads the environment

        ray.init(
            address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, logging_level="ERROR"
        )
        try:
            process = ray.get(ray.remote(num_cpus=0)(_process).remote(), timeout=60)
            print(f"a task ran in process {process} of {ray.cluster_resources().get('CPU', 0):g} CPUs")
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
