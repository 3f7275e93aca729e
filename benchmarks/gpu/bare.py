"""The engine loop without HTTP, Ray and the job store, with the text encoder in a thread of its own."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu.serve import STEP_METRIC, STEPS
from serve.engine import codec
from serve.engine.flight import Generation
from serve.engine.open import Placement, open_engine, open_text_encoder
from serve.engine.text import Embedding
from serve.jobs.deadlines import FACTOR
from serve.settings import Settings
from serve.step_times import sequence_tokens


class BareLoop:
    """Draws as the service does, with the deadlines that the service would give."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._engine = open_engine(settings, folder, Placement.choose(settings))
        self._text_encoder = open_text_encoder(settings, folder, Placement.of_text(settings))
        self._beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # in its own process it would not wait for the denoiser's steps either
        self._texts, self._files = ThreadPoolExecutor(1), ThreadPoolExecutor(2)
        self._spent: list[dict[str, float]] = []
        self._stepped: list[float] = []

    def close(self) -> None:
        self._texts.shutdown()
        self._files.shutdown()
        self._engine.stop()

    async def draw(self, side: int, seed: int, prompt: str) -> None:
        loop = asyncio.get_running_loop()
        embedding = await loop.run_in_executor(self._texts, self._encode, prompt)
        drawn = await self._engine.draw(self._generation(side, seed, embedding), lambda *_: None)
        began = time.perf_counter()
        await loop.run_in_executor(self._files, codec.encode, drawn.pixels, "jpeg")
        seconds = {"encode": embedding.seconds, "denoise": drawn.denoise_s, "decode": drawn.decode_s}
        seconds["file"] = time.perf_counter() - began
        self._spent.append({f"{stage}_ms": 1e3 * value for stage, value in seconds.items()})

    def stages(self, pictures: int) -> dict[str, float]:
        """Medians of the last pictures, in milliseconds."""
        return {stage: median(one[stage] for one in self._spent[-pictures:]) for stage in self._spent[-1]}

    def steps(self) -> tuple[float, float]:
        """Seconds and number of all steps so far."""
        tally = self._engine.recorder.drain()
        for (name, _), values in tally.observed.items() if tally else ():
            self._stepped.extend(values if name == STEP_METRIC else [])
        return sum(self._stepped), len(self._stepped)

    def _encode(self, prompt: str) -> Embedding:
        with torch.cuda.stream(self._beside):
            (embedding,) = self._text_encoder.encode([prompt])
        return embedding

    def _generation(self, side: int, seed: int, embedding: Embedding) -> Generation:
        tokens = sequence_tokens((side // 16) ** 2, len(embedding.data))
        alone_s = self._engine.times.image_seconds(steps=STEPS, tokens=tokens, rows=1, pixels=side * side)
        return Generation(
            id=f"{seed}",
            height=side,
            width=side,
            steps=STEPS,
            seed=seed,
            embedding=embedding.tensor(),
            negative=None,
            guidance=0.0,
            deadline=self._engine.clock() + FACTOR["interactive"] * alone_s,
            hard_deadline=False,
            alone=False,
            preview_steps=frozenset(),
        )
