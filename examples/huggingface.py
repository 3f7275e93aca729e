"""Hugging Face's own client: python examples/huggingface.py "a red fox" fox.png"""

import os
import sys

from huggingface_hub import InferenceClient

prompt, path = sys.argv[1:3]
url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")
client = InferenceClient(model=f"{url}/hf/text-to-image", token=os.environ.get("ZIMAGE_KEY", "none"))
client.text_to_image(prompt, seed=1, num_inference_steps=4).save(path)
