"""A front end in Gradio, with progress: pip install gradio httpx && python examples/gradio_app.py"""

import io
import json
import os
from collections.abc import Iterator

import gradio as gr
import httpx
from PIL import Image

URL = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")
HEADERS = {"Authorization": f"Bearer {os.environ['ZIMAGE_KEY']}"} if "ZIMAGE_KEY" in os.environ else {}


def draw(prompt: str, steps: float) -> Iterator[tuple[Image.Image | None, str]]:
    """What is known of the picture, again and again until it is there."""
    with httpx.Client(base_url=URL, headers=HEADERS, timeout=120) as client:
        answer = client.post("/v1/jobs", json={"prompt": prompt, "num_inference_steps": int(steps)})
        if answer.is_error:
            raise gr.Error(answer.json()["error"]["message"])
        job = answer.json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
            for line in events.iter_lines():
                if line.startswith("data: "):
                    job |= json.loads(line.removeprefix("data: "))["data"]
                    yield None, f"{job['status']}, step {job['progress']['step']} of {job['progress']['steps']}"
        if job["status"] != "succeeded":
            raise gr.Error((job["error"] or {}).get("message", job["status"]))
        picture = client.get(job["result"]["images"][0]["url"])
    yield Image.open(io.BytesIO(picture.content)), f"{job['timings']['total_ms']:.0f} ms, job {job['id']}"


app = gr.Interface(draw, ["text", gr.Slider(1, 50, 8, step=1)], ["image", "text"], api_name="draw")
if __name__ == "__main__":
    app.launch(server_port=int(os.environ.get("PORT", "7860")))
