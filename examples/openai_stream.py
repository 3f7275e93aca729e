"""Previews while the picture is drawn, then the picture: python examples/openai_stream.py "a red fox" fox.png"""

import asyncio
import base64
import os
import sys
from pathlib import Path

from openai import AsyncOpenAI


async def main(prompt: str, path: str) -> None:
    url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ZIMAGE_KEY", "none")) as client:
        stream = await client.images.generate(prompt=prompt, stream=True, partial_images=2)
        async for event in stream:
            picture = base64.b64decode(event.b64_json)
            print(f"{event.type}: {len(picture)} bytes")
            if event.type == "image_generation.completed":
                Path(path).write_bytes(picture)


asyncio.run(main(*sys.argv[1:3]))
