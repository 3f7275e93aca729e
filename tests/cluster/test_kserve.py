"""Triton's client through Ray Serve: binary bodies, rows in their order, one count for all processes, leaving."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
import tritonclient.http.aio as triton

from tests.cluster.server import Server

pytestmark = pytest.mark.cluster

MODEL = "z-image-turbo"
PROMPTS = ["a red fox on a yellow background", "a penguin on a blue background", "a tree on a white background"]


def tensor(name: str, values: list[object], datatype: str) -> triton.InferInput:
    kind = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}[datatype]
    array = np.array(values, dtype=kind).reshape(-1, 1)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


async def test_a_batch_through_ray_serve_and_its_count(server: Server) -> None:
    async with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert await client.is_server_ready()
        before = await client.get_inference_statistics(MODEL)
        seeds = [5, 2**60, 7]
        inputs = [tensor("prompt", PROMPTS, "BYTES"), tensor("seed", seeds, "INT64")]
        answer = await client.infer(MODEL, inputs, request_compression_algorithm="gzip")
        assert answer.as_numpy("generated_image").shape == (3, 128, 128, 3)
        assert answer.as_numpy("seed_used")[:, 0].tolist() == seeds
        after = await client.get_inference_statistics(MODEL)
    (old,), (new,) = before["model_stats"], after["model_stats"]
    assert new["inference_stats"]["success"]["count"] - old["inference_stats"]["success"]["count"] == 1
    assert new["inference_count"] - old["inference_count"] == 3


async def test_leaving_stops_all_rows(server: Server) -> None:
    async with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        sizes = [tensor(side, [256] * 6, "INT32") for side in ("width", "height")]
        inputs = [tensor("prompt", [*PROMPTS, *PROMPTS], "BYTES"), tensor("steps", [50] * 6, "INT32"), *sizes]
        leaving = asyncio.create_task(client.infer(MODEL, inputs))
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await until(http, lambda state: state["running"] > 0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until(http, lambda state: state["running"] + state["queued"] == 0)
            canceled = (await http.get("/v1/jobs", params={"status": "canceled"})).json()["data"]
    assert len(canceled) >= 1


async def until(http: httpx.AsyncClient, seen) -> None:
    for _ in range(400):
        if seen((await http.get("/readyz")).json()):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within 20 s")
