"""The process that speaks HTTP. It keeps no state: any replica can answer any request."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from deployments import nodes
from deployments.host import bound_host
from deployments.remote import RemoteService, detached
from deployments.replica import process_name, replica_id
from serve import logs
from serve.access_settings import is_loopback
from serve.api.app import create_app
from serve.assets.open import open_assets
from serve.hot import HotFiles
from serve.presets.hot import hot_presets
from serve.settings import Settings
from serve.tokens import PromptTokens

SWEEP_EVERY_S, KEEP_PREVIEWS_S = 600.0, 3600.0


class Gateway:
    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Settings, folders: dict[str, Path], dispatcher: DeploymentHandle, node: str | None = None
    ) -> None:
        nodes.stay(node)
        logs.configure(settings.log_format, process_name())
        self._settings = settings
        self._service = RemoteService(dispatcher, replica_id())
        self._presets = hot_presets(settings)
        self._hot = HotFiles(self._presets, announce=self._service.announce_config)
        await self._hot.open()
        self._service.open(self._hot.look)
        self._watching = detached(self._hot.watch())
        self._assets = open_assets(settings)
        self._tokenizers = {model: PromptTokens(folder / "tokenizer") for model, folder in folders.items()}
        self._sweeping = detached(self._sweep_previews())
        self._exposed = not is_loopback(await bound_host())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve's proxy puts the request id on every answer itself."""
        return create_app(
            self._service,
            self._assets,
            self._tokenizers[self._settings.served_model_name],
            self._settings,
            tokenizers=self._tokenizers,
            presets=self._presets,
            hot=self._hot,
            echo_request_id=False,
            exposed=self._exposed,
            recorder=self._service.recorder,
        )

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Ray Serve's hot `user_config`: documents that take the place of files, such as `presets`."""
        await self._hot.give(user_config)

    async def _sweep_previews(self) -> None:
        """Previews of jobs are kept for whoever joins late; all Gateways may sweep at once."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await self._assets.sweep_previews(KEEP_PREVIEWS_S)
