"""A picture with OpenAI's own client: python examples/openai_sync.py "a red fox" fox.png"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

prompt, path = sys.argv[1:3]
url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ZIMAGE_KEY", "none"))

answer = client.images.generate(prompt=prompt, quality="low", extra_body={"seed": 1})
Path(path).write_bytes(base64.b64decode(answer.data[0].b64_json))
print(f"{path}: {answer.size}, {answer.usage.input_tokens} tokens of prompt")
