"""The whole service in one process, without Ray: for one picture on the command line, and for tests of the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.assets.open import check_assets, open_assets
from serve.assets.store import AssetStore
from serve.engine.embeddings import RememberingEncoder
from serve.engine.engine import Engine
from serve.engine.generator import Generator
from serve.engine.identity import identity_of
from serve.engine.open import Placement, open_adapters, open_controlnets, open_engine, open_text_encoder
from serve.engine.text import Embedding
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.messages import Generated, ImageRequest, Phase, ReplicaState, Task
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.weights import resolve, verify

Embeddings = asyncio.Future[list[Embedding]]


class LocalService(Dispatcher):
    """ImageService over engines in this process, with the store and the tokenizer that the API needs."""

    def __init__(self, settings: Settings, backend: LocalBackend, assets: AssetStore, folder: Path) -> None:
        super().__init__(settings, backend, store_of(settings), assets)
        self.assets = assets
        self.prompts = PromptTokens(folder / "tokenizer")


@dataclass(slots=True)
class LocalBackend:
    text_encoder: RememberingEncoder
    generator: Generator
    texts: ThreadPoolExecutor
    service: Dispatcher | None = None

    def encode(self, request: ImageRequest) -> Embeddings:
        prompts = [request.prompt, request.negative_prompt] if request.guided else [request.prompt]
        work = asyncio.get_running_loop().run_in_executor(self.texts, self.text_encoder.encode, prompts)
        return asyncio.ensure_future(work)

    async def generate(self, task: Task, embeddings: object) -> Generated:
        assert isinstance(embeddings, asyncio.Future)
        assert self.service is not None
        service = self.service
        positive, *negative = await asyncio.shield(embeddings)
        return await self.generator.generate(
            task, positive, negative[0] if negative else None, lambda report: service.report([report])
        )


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[LocalService]:
    """Loads and warms up the model, then serves until the block is left."""
    folder = resolve(settings)
    verify(folder)
    check_assets(settings)
    assets = open_assets(settings)
    with ThreadPoolExecutor(1, "text") as texts, ThreadPoolExecutor(1, "files") as files:
        backend, engine = await asyncio.to_thread(_load, settings, folder, assets, texts, files)
        service = LocalService(settings, backend, assets, folder)
        backend.service = service
        await service.open()
        identity = await asyncio.to_thread(identity_of, folder, str(Placement.choose(settings)))
        await backend.generator.adapters.preload()
        await backend.generator.controlnets.preload()
        _beat(service, settings, backend.generator, identity)
        beats = asyncio.create_task(_keep_beating(service, settings, backend.generator, identity))
        try:
            yield service
        finally:
            beats.cancel()
            await service.close()
            await asyncio.to_thread(engine.stop)
            backend.generator.adapters.close()
            backend.generator.controlnets.close()


def _load(
    settings: Settings, folder: Path, assets: AssetStore, texts: ThreadPoolExecutor, files: ThreadPoolExecutor
) -> tuple[LocalBackend, Engine]:
    placement = Placement.choose(settings)
    adapters = open_adapters(settings, folder, placement)
    controlnets = open_controlnets(settings, folder, placement)
    engine = open_engine(settings, folder, placement, set_aside=adapters.most_bytes + controlnets.most_bytes)
    generator = Generator(engine, assets, files, settings, adapters, controlnets)
    return LocalBackend(open_text_encoder(settings, folder, placement), generator, texts), engine


async def _keep_beating(service: Dispatcher, settings: Settings, generator: Generator, identity: str) -> None:
    while True:
        await asyncio.sleep(settings.timeouts.heartbeat_s)
        _beat(service, settings, generator, identity)


def _beat(service: Dispatcher, settings: Settings, generator: Generator, identity: str) -> None:
    device = str(Placement.choose(settings))
    text_encoder = ReplicaState(replica_id="local-text-encoder", role="text_encoder", phase=Phase.READY, device=device)
    service.heartbeat(text_encoder)
    denoiser = ReplicaState(
        replica_id="local-denoiser",
        role="denoiser",
        phase=Phase.READY,
        device=device,
        engine=identity,
        slots=settings.scheduler.window,
    )
    service.heartbeat(generator.report(denoiser, settings.cap_px))
