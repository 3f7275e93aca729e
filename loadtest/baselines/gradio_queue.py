"""A Gradio demo with its queue: python -m loadtest.baselines.gradio_queue --port 9600"""

from __future__ import annotations

import argparse

import gradio as gr
from PIL import Image

from loadtest.baselines.pipeline import draw, open_pipeline

WAITING = 20  # people who may wait: what most public demos say, so that nobody waits for minutes

pipeline = open_pipeline()


def generate(prompt: str, seed: float, size: float) -> Image.Image:
    return draw(pipeline, prompt, int(size), int(seed))


demo = gr.Interface(
    generate,
    inputs=[gr.Textbox(label="Prompt"), gr.Number(0, label="Seed"), gr.Slider(64, 256, 128, step=64, label="Size")],
    outputs=gr.Image(format="png"),
    api_name="generate",
    flagging_mode="never",
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9600)
    options = parser.parse_args()
    demo.queue(max_size=WAITING, default_concurrency_limit=1)
    demo.launch(server_name="127.0.0.1", server_port=options.port)
