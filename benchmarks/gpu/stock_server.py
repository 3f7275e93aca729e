"""What people deploy without a serving backend: diffusers' ZImagePipeline behind a plain FastAPI server.

python -m benchmarks.gpu.stock_server FOLDER --port 8200
"""

from __future__ import annotations

import argparse
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import uvicorn
from diffusers import ZImagePipeline
from fastapi import Body, FastAPI, Response


def create_app(folder: Path) -> FastAPI:
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    device, app = threading.Lock(), FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/images/generations")
    def generate(body: dict[str, Any] = Body(...)) -> Response:  # noqa: B008
        width, height = map(int, body["size"].split("x"))
        with device:
            image = pipeline(
                body["prompt"],
                width=width,
                height=height,
                num_inference_steps=8,
                guidance_scale=0.0,
                generator=torch.Generator().manual_seed(body["seed"]),
            ).images[0]
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return Response(buffer.getvalue(), media_type="image/jpeg")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8200)
    options = parser.parse_args()
    uvicorn.run(create_app(options.folder), host="127.0.0.1", port=options.port, log_level="warning")
