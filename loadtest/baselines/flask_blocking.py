"""A Flask route that draws while its caller waits.

python -m gunicorn --workers 1 --threads 8 --timeout 120 --bind 127.0.0.1:9600 loadtest.baselines.flask_blocking:app
"""

from __future__ import annotations

import threading

from flask import Flask, Response, jsonify, request

from loadtest.baselines.pipeline import draw, open_pipeline, png

app = Flask(__name__)
pipeline = open_pipeline()
device = threading.Lock()  # the pipeline keeps state between steps: two threads at once spoil each other's picture


@app.post("/generate")
def generate() -> Response | tuple[Response, int]:
    order = request.get_json()
    if not order.get("prompt"):
        return jsonify(error="prompt is missing"), 400
    with device:
        image = draw(pipeline, order["prompt"], order.get("size", 128), order.get("seed", 0))
    return Response(png(image), mimetype="image/png")


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
