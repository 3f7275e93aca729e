"""Where the proxies of this Ray Serve listen, whoever has started them."""

from __future__ import annotations

import asyncio

import ray

LOCAL = "127.0.0.1"


async def bound_host() -> str:
    """`http_options.host`; this machine in Ray Serve's local testing mode, which has no proxy."""
    return await asyncio.to_thread(_bound_host) if ray.is_initialized() else LOCAL


def _bound_host() -> str:
    from ray.serve.context import _get_global_client  # noqa: PLC0415 - no public function tells it to a replica

    host: str | None = _get_global_client().http_config.host
    return host or LOCAL
