"""The replicas of several models as one Backend: each call goes to those of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve.jobs.fleet import Backend
from serve.messages import Generated, ImageRequest, Task


@dataclass(frozen=True, slots=True)
class Backends:
    """By the name of the model, or any other that it goes by."""

    models: Mapping[str, Backend]

    def encode(self, request: ImageRequest) -> object:
        return self.models[request.model].encode(request)

    async def generate(self, task: Task, embeddings: object) -> Generated:
        return await self.models[task.request.model].generate(task, embeddings)
