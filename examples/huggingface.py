"""Hugging Face's own client: python examples/huggingface.py "a red fox" fox.png [picture to begin with]"""

import os
import sys

from huggingface_hub import InferenceClient

prompt, path, *begin = sys.argv[1:]
url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")
client = InferenceClient(model=f"{url}/hf/models/z-image-turbo", token=os.environ.get("ZIMAGE_KEY", "none"))
if begin:
    image = client.image_to_image(begin[0], prompt=prompt, strength=0.8, seed=1, num_inference_steps=4)
else:
    image = client.text_to_image(prompt, seed=1, num_inference_steps=4)
image.save(path)
