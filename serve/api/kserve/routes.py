"""All routes under /v2: the fixed paths before those that name a model."""

from __future__ import annotations

from fastapi import APIRouter

from serve.api.kserve import generate, health, infer, metadata, repository, stats

router = APIRouter()
for _concern in (health, repository, infer, generate, stats, metadata):
    router.include_router(_concern.router)
