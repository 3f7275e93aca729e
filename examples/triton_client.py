"""NVIDIA's Triton client, two pictures in one request: python examples/triton_client.py "a red fox" "a penguin" """

import os
import sys

import numpy as np
import tritonclient.http as triton

url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000").partition("://")[2]
headers = {"Authorization": f"Bearer {os.environ['ZIMAGE_KEY']}"} if "ZIMAGE_KEY" in os.environ else None
prompts = np.array(sys.argv[1:], dtype=object).reshape(-1, 1)
seeds = np.arange(len(prompts), dtype=np.int64).reshape(-1, 1)

client = triton.InferenceServerClient(url, network_timeout=300)  # it gives up after 60 s otherwise
prompt = triton.InferInput("prompt", list(prompts.shape), "BYTES")
prompt.set_data_from_numpy(prompts)
seed = triton.InferInput("seed", list(seeds.shape), "INT64")
seed.set_data_from_numpy(seeds)
wanted = [triton.InferRequestedOutput(name) for name in ("generated_image", "seed_used")]
answer = client.infer("z-image-turbo", [prompt, seed], outputs=wanted, headers=headers)
print(answer.as_numpy("generated_image").shape, answer.as_numpy("seed_used").tolist())
