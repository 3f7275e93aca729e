"""The whole service in one process, without Ray: for one picture on the command line, and for tests of the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
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
from serve.jobs.backends import Backends
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import Backend
from serve.jobs.pool import homes
from serve.jobs.store import store_of
from serve.messages import Generated, ImageRequest, Phase, ReplicaState, Task
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.weights import resolve, verify

Embeddings = asyncio.Future[list[Embedding]]


class LocalService(Dispatcher):
    """ImageService over engines in this process, with the store and the tokenizers that the API needs."""

    def __init__(self, settings: Settings, backend: Backend, assets: AssetStore, folders: Mapping[str, Path]) -> None:
        super().__init__(settings, backend, store_of(settings), assets)
        self.assets = assets
        self.tokenizers = {model: PromptTokens(folder / "tokenizer") for model, folder in folders.items()}
        self.prompts = self.tokenizers[settings.served_model_name]


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
    """Loads and warms up the models, then serves until the block is left."""
    folders = {model: resolve(settings.of(model)) for model in settings.served}
    for folder in folders.values():
        verify(folder)
    check_assets(settings)
    assets = open_assets(settings)
    async with AsyncExitStack() as opened:
        models = [
            await opened.enter_async_context(_open_model(settings.of(model), folder, assets))
            for model, folder in folders.items()
        ]
        loaded = {model.settings.served_model_name: model.backend for model in models}
        backends = Backends({name: loaded[model] for name, model in homes(settings).items()})
        service = LocalService(settings, backends, assets, folders)
        await service.open()
        opened.push_async_callback(service.close)
        for model in models:
            model.backend.service = service
            await opened.enter_async_context(model.beating(service))
        yield service


@asynccontextmanager
async def _open_model(settings: Settings, folder: Path, assets: AssetStore) -> AsyncIterator[LocalModel]:
    with ThreadPoolExecutor(1, "text") as texts, ThreadPoolExecutor(1, "files") as files:
        backend, engine = await asyncio.to_thread(_load, settings, folder, assets, texts, files)
        device = str(Placement.choose(settings))
        identity = await asyncio.to_thread(identity_of, folder, device)
        await backend.generator.adapters.preload()
        await backend.generator.controlnets.preload()
        try:
            yield LocalModel(settings, backend, identity, device)
        finally:
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
    adapters.recorder = controlnets.recorder = engine.recorder
    generator = Generator(engine, assets, files, settings, adapters, controlnets)
    return LocalBackend(open_text_encoder(settings, folder, Placement.of_text(settings)), generator, texts), engine


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One that is loaded, and tells the service that it lives."""

    settings: Settings
    backend: LocalBackend
    identity: str
    device: str

    @asynccontextmanager
    async def beating(self, service: Dispatcher) -> AsyncIterator[None]:
        self._beat(service)
        beats = asyncio.create_task(self._keep_beating(service))
        try:
            yield
        finally:
            beats.cancel()

    async def _keep_beating(self, service: Dispatcher) -> None:
        while True:
            await asyncio.sleep(self.settings.timeouts.heartbeat_s)
            self._beat(service)

    def _beat(self, service: Dispatcher) -> None:
        model, generator = self.settings.served_model_name, self.backend.generator
        text_encoder = ReplicaState(
            replica_id=f"local-text-encoder-{model}",
            model=model,
            role="text_encoder",
            phase=Phase.READY,
            device=self.device,
        )
        service.heartbeat(text_encoder)
        denoiser = ReplicaState(
            replica_id=f"local-denoiser-{model}",
            model=model,
            role="denoiser",
            phase=Phase.READY,
            device=self.device,
            engine=self.identity,
            slots=self.settings.scheduler.window,
        )
        service.heartbeat(generator.report(denoiser, self.settings.cap_px))
