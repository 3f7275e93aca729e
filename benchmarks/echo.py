"""The product around a trivial model, for benchmarks/protocol_overhead.py: every picture is one colour, at once.

    python -m benchmarks.echo --port 8123 --data /some/dir [--ray]

All but the engine is the product's own: HTTP, queue, job store, files, asset store; with `--ray` also Ray Serve and its
deployments as in config/serve.yaml, else one process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from deployments.denoiser import Denoiser
from deployments.replica import Membership, replica_id
from serve.assets.open import open_assets
from serve.engine.flight import Drawn, Generation, OnStep
from serve.engine.generator import Generator
from serve.messages import Phase, ReplicaState, Span
from serve.metrics.tally import Recorder
from serve.settings import EMBEDDED_FOLDER, Settings

SIDE_PX = 64


@dataclass
class EchoEngine:
    """What the generator asks of an engine."""

    recorder: Recorder = field(default_factory=Recorder)
    clock: Callable[[], float] = time.monotonic
    lost: bool = False

    async def draw(self, generation: Generation, on_step: OnStep) -> Drawn:
        began = time.time()
        colour = np.frombuffer(generation.seed.to_bytes(8, "little", signed=True)[:3], np.uint8)
        pixels = np.tile(colour, (generation.height, generation.width, 1))
        on_step(generation.steps, None)
        now = time.time()
        return Drawn(pixels, began, now - began, 0.0, 1.0, now, Span(now, now))

    def silent_s(self) -> float:
        return 0.0

    def report(self, state: ReplicaState, _cap_px: int) -> ReplicaState:
        return state


class EchoDenoiser(Denoiser):
    """The Denoiser's own way of a task, around another engine."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        state = ReplicaState(
            replica_id=replica_id(), role="denoiser", phase=Phase.LOADING, device="cpu", slots=settings.scheduler.window
        )
        self._membership = Membership(settings, state)
        self._engine = EchoEngine(self._membership.recorder)  # type: ignore[assignment]
        self._gpu = None
        self._cap_px = settings.cap_px
        self._generator = Generator(self._engine, open_assets(settings), ThreadPoolExecutor(2, "files"), settings)
        self._membership.ready(replace(state, engine="echo"), self._measured)


def settings_of(data: Path) -> Settings:
    return Settings(data=data, default_size_px=SIDE_PX, default_steps=1, warmup_sizes_px=(SIDE_PX,), presets=None)


def serve_with_ray(port: int, data: Path) -> None:
    """As `make serve`, with the options of config/serve.yaml."""
    import yaml

    from deployments.run import set_environment

    set_environment()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from deployments.dispatcher import Dispatcher
    from deployments.gateway import Gateway
    from deployments.placement import PlacedRouter
    from deployments.text_encoder import TextEncoder

    settings, folder = settings_of(data), EMBEDDED_FOLDER
    config = yaml.safe_load(Path("config/serve.yaml").read_text())
    how = {entry["name"]: entry for entry in config["applications"][0]["deployments"]}
    placed = RequestRouterConfig(request_router_class=f"{PlacedRouter.__module__}.{PlacedRouter.__name__}")
    text_encoder = serve.deployment(TextEncoder).options(**how["TextEncoder"]).bind(settings, folder)
    denoiser = serve.deployment(EchoDenoiser, request_router_config=placed).options(**how["Denoiser"])
    model = settings.served_model_name
    parts = ({model: text_encoder}, {model: denoiser.bind(settings)})
    dispatcher = serve.deployment(Dispatcher).options(**how["Dispatcher"]).bind(settings, *parts)
    gateway = serve.deployment(serve.ingress()(Gateway)).options(**how["Gateway"])
    gateway = gateway.bind(settings, {model: folder}, dispatcher)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(gateway, name="zimage")
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


async def serve_in_one_process(port: int, data: Path) -> None:
    import uvicorn

    from serve.api.app import create_app
    from serve.engine.open import Placement, open_text_encoder
    from serve.local import LocalBackend, LocalService

    settings = settings_of(data)
    assets, engine, folder = open_assets(settings), EchoEngine(), EMBEDDED_FOLDER
    encoder = open_text_encoder(settings, folder, Placement.choose(settings))
    generator = Generator(engine, assets, ThreadPoolExecutor(2, "files"), settings)  # type: ignore[arg-type]
    backend = LocalBackend(encoder, generator, ThreadPoolExecutor(1, "text"))
    service = backend.service = LocalService(settings, backend, assets, {settings.served_model_name: folder})
    await service.open()
    app = create_app(service, assets, service.prompts, settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", access_log=False)
    serving = asyncio.create_task(uvicorn.Server(config).serve())
    state = ReplicaState(replica_id="", role="denoiser", phase=Phase.READY, device="cpu", engine="echo", slots=8)
    while not serving.done():
        service.heartbeat(replace(state, replica_id="echo"))
        service.heartbeat(replace(state, replica_id="text", role="text_encoder"))
        await asyncio.sleep(settings.timeouts.heartbeat_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ray", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if asked.ray:
        serve_with_ray(asked.port, asked.data)
    else:
        asyncio.run(serve_in_one_process(asked.port, asked.data))


if __name__ == "__main__":
    main()
