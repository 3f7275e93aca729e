"""FastAPI with functools.lru_cache over a disk cache: the same prompt and seed are drawn once.

CACHE=/tmp/cache python -m uvicorn loadtest.baselines.disk_cache:app --port 9600
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache

from diskcache import Cache
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from loadtest.baselines.pipeline import draw, open_pipeline, png

app = FastAPI()
pipeline = open_pipeline()
device = threading.Lock()  # the pipeline keeps state between steps: two threads at once spoil each other's picture
disk = Cache(os.environ.get("CACHE", "cache"), size_limit=1 << 30)


class Order(BaseModel):
    prompt: str = Field(min_length=1)
    size: int = 128
    seed: int = 0


@lru_cache(maxsize=256)
def picture(prompt: str, size: int, seed: int) -> bytes:
    key = (prompt, size, seed)
    file: bytes | None = disk.get(key)
    if file is None:
        with device:
            image = draw(pipeline, prompt, size, seed)
        file = png(image)
        disk.set(key, file)
    return file


@app.post("/generate")
def generate(order: Order) -> Response:
    return Response(picture(order.prompt, order.size, order.seed), media_type="image/png")
