"""FastAPI that hands tasks to a Celery worker through Redis; the browser asks until its picture is there.

redis-server --port 9601 --save ""
export REDIS_URL=redis://127.0.0.1:9601/0 PICTURES=/tmp/pictures
python -m celery -A loadtest.baselines.celery_polling:tasks worker --pool solo --prefetch-multiplier 1
python -m uvicorn loadtest.baselines.celery_polling:app --port 9600
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from celery.signals import worker_init
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PICTURES = Path(os.environ.get("PICTURES", "pictures"))

tasks = Celery("pictures", broker=REDIS, backend=REDIS)
tasks.conf.update(task_acks_late=True, result_expires=3600, broker_connection_retry_on_startup=True)
app = FastAPI()
model: dict[str, Any] = {}  # filled in the worker only: the web process needs no torch


@worker_init.connect
def load(**_: object) -> None:
    from loadtest.baselines.pipeline import open_pipeline

    PICTURES.mkdir(parents=True, exist_ok=True)
    model["pipeline"] = open_pipeline()


@tasks.task(bind=True)
def generate(self: Any, prompt: str, size: int, seed: int) -> str:
    from loadtest.baselines.pipeline import draw

    name = f"{self.request.id}.png"
    draw(model["pipeline"], prompt, size, seed).save(PICTURES / name)
    return name


class Order(BaseModel):
    prompt: str = Field(min_length=1)
    size: int = 128
    seed: int = 0


@app.post("/tasks", status_code=202)
def submit(order: Order) -> dict[str, str]:
    return {"id": generate.delay(order.prompt, order.size, order.seed).id}


@app.get("/tasks/{task_id}")
def status(task_id: str) -> dict[str, str | None]:
    result = AsyncResult(task_id, app=tasks)
    return {"status": result.status, "picture": f"/pictures/{result.result}" if result.successful() else None}


@app.get("/pictures/{name}")
def picture(name: str) -> FileResponse:
    path = PICTURES / Path(name).name
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type="image/png")
