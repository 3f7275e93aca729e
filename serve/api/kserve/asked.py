"""The model that a path names, as the routes take it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from serve.api.deps import TheDoor
from serve.api.kserve.models import Model, model_of
from serve.errors import NotOffered


async def _model(model: str, request: Request, door: TheDoor) -> Model:
    return model_of(door.settings, model, request.path_params.get("version"))


TheModel = Annotated[Model, Depends(_model)]


async def _pipeline(model: TheModel) -> Model:
    if not model.whole:
        hint = f"ask {model.served}"
        raise NotOffered(f"{model.name} is a part and takes no requests", param="model", hint=hint)
    return model


ThePipeline = Annotated[Model, Depends(_pipeline)]
