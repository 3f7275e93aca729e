"""A service in a thread of its own, and crowds of requests that reach it together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from ulid import ULID

from serve.local import LocalService, open_service
from serve.messages import Canceled, ImageRequest, Submission, Succeeded, Terminal
from serve.settings import Settings
from tests.exactness.inputs import KNOWN


@dataclass(frozen=True, slots=True)
class Visitor:
    """Comes `after_s`; leaves `cancel_s` later, if it does not wait for its picture."""

    request: ImageRequest
    after_s: float = 0.0
    cancel_s: float | None = None


class Crowd:
    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self._service: LocalService = self.run(self._stack.enter_async_context(open_service(settings)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=300)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def tokens(self, prompt: str) -> int:
        return self._service.prompts.count(prompt)

    def serve(self, visitors: list[Visitor]) -> list[np.ndarray | None]:
        """Each one's picture [H, W, 3], None for those that left in time."""
        return self.run(self._serve_all(visitors))

    async def _serve_all(self, visitors: list[Visitor]) -> list[np.ndarray | None]:
        return await asyncio.gather(*map(self._serve_one, visitors))

    async def _serve_one(self, visitor: Visitor) -> np.ndarray | None:
        await asyncio.sleep(visitor.after_s)
        job_id = str(ULID())
        tokens = self._service.prompts.count(visitor.request.prompt)
        for name in visitor.request.inputs:
            await self._service.assets.write_input(name, KNOWN[name].data)
        await self._service.submit(Submission(job_id=job_id, request=visitor.request, prompt_tokens=tokens))
        if visitor.cancel_s is not None:
            asyncio.get_running_loop().call_later(
                visitor.cancel_s, lambda: asyncio.ensure_future(self._service.cancel(job_id))
            )
        async for event in self._service.watch(job_id):
            if isinstance(event, Terminal):
                return await self._picture(event)
        raise AssertionError("the events ended without a terminal one")

    async def _picture(self, event: Terminal) -> np.ndarray | None:
        if isinstance(event, Canceled):
            return None
        assert isinstance(event, Succeeded), event
        asset = await self._service.assets.read(event.images[0].asset_id)
        return np.asarray(Image.open(BytesIO(asset.data)))
