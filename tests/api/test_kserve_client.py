"""NVIDIA's own client, as its users have it."""

import asyncio
import time

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serve.errors import OutOfMemory
from serve.messages import JobQuery

MODEL = "z-image-turbo"
PROMPTS = ["a red fox on a yellow background", "a penguin on a blue background", "a tree on a white background"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(base_url):
    async with connected(base_url) as client:
        yield client


def connected(base_url: str) -> triton_aio.InferenceServerClient:
    return triton_aio.InferenceServerClient(base_url.removeprefix("http://"))


def tensor(name: str, values, datatype: str = "BYTES", binary: bool = True) -> triton.InferInput:
    kind = {"BYTES": object, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}[datatype]
    array = np.array(values, dtype=kind).reshape(-1, 1)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def sample(url: str) -> np.ndarray:
    """The request of docs/examples/stable_diffusion/client.py of NVIDIA's triton-inference-server."""
    client = triton.InferenceServerClient(url=url)
    text = np.array(["Pikachu with a hat, 4k, 3d render"], dtype="object").reshape((-1, 1))
    prompt = triton.InferInput("prompt", text.shape, np_to_triton_dtype(text.dtype))
    prompt.set_data_from_numpy(text)
    image = triton.InferRequestedOutput("generated_image")
    answer = client.infer(model_name=MODEL, inputs=[prompt], outputs=[image])
    client.close()
    return answer.as_numpy("generated_image")


async def test_nvidias_sample_request(base_url):
    pixels = await asyncio.to_thread(sample, base_url.removeprefix("http://"))
    assert pixels.dtype == np.uint8
    assert np.squeeze(pixels).shape == (128, 128, 3)
    assert pixels.std() > 1


async def test_health_and_metadata(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready(MODEL)
    assert await client.is_model_ready("denoiser", "1")
    assert not await client.is_model_ready("denoiser", "2")
    server = await client.get_server_metadata()
    assert {"binary_tensor_data", "model_configuration", "parameters"} <= set(server["extensions"])
    model = await client.get_model_metadata(MODEL)
    assert (model["platform"], model["versions"]) == ("ensemble", ["1"])
    assert {"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]} in model["inputs"]
    assert {"name": "generated_image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]} in model["outputs"]


async def test_config(client, settings):
    whole = await client.get_model_config(MODEL)
    assert [step["model_name"] for step in whole["ensemble_scheduling"]["step"]] == ["text_encoder", "denoiser"]
    assert whole["max_batch_size"] == settings.limits.max_n
    assert {spec["name"]: spec["optional"] for spec in whole["input"]}["seed"]
    part = await client.get_model_config("denoiser", "1")
    assert part["instance_group"] == [{"name": "denoiser_0", "kind": "KIND_CPU", "count": 1}]
    policy = part["dynamic_batching"]["default_queue_policy"]
    assert policy["max_queue_size"] == settings.queue.max_depth
    assert policy["default_timeout_microseconds"] == 300_000_000


async def test_an_ensembles_tensors_flow_through_its_steps(client):
    """What a step takes is an input of the whole or comes from an earlier step; the last one gives the outputs."""
    whole = await client.get_model_config(MODEL)
    known = {spec["name"] for spec in whole["input"]}
    for step in whole["ensemble_scheduling"]["step"]:
        assert set(step["input_map"].values()) <= known
        known |= set(step["output_map"].values())
        part = await client.get_model_metadata(step["model_name"])
        assert {spec["name"] for spec in part["inputs"]} == set(step["input_map"])
    assert {spec["name"] for spec in whole["output"]} <= known


async def test_repository(client):
    index = await client.get_model_repository_index()
    assert {entry["name"]: entry["state"] for entry in index} == dict.fromkeys(
        [MODEL, "text_encoder", "denoiser"], "READY"
    )
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
        await client.load_model(MODEL)
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
        await client.unload_model(MODEL)


async def test_a_batch_in_binary_is_its_rows_in_json(client, picture):
    """Every row is drawn as if it had come alone, whichever way its tensors came and its picture went."""
    seeds = [1, 2**62 + 3, 7]
    inputs = [tensor("prompt", PROMPTS), tensor("seed", seeds, "INT64")]
    batch = await client.infer(MODEL, inputs, request_id="r1")
    assert batch.get_response()["id"] == "r1"
    pixels = batch.as_numpy("generated_image")
    assert (pixels.shape, pixels.dtype) == ((3, 128, 128, 3), np.uint8)
    assert batch.as_numpy("seed_used").tolist() == [[seed] for seed in seeds]
    for row, file in enumerate(batch.as_numpy("image_bytes")[:, 0]):
        assert np.array_equal(np.asarray(picture(file)), pixels[row])
    for row in range(3):
        inputs = [tensor("seed", [seeds[row]], "INT64", binary=False), tensor("prompt", [PROMPTS[row]], binary=False)]
        wanted = [triton.InferRequestedOutput("generated_image", binary_data=False)]
        alone = await client.infer(MODEL, inputs, outputs=wanted)
        assert "id" not in alone.get_response()
        assert np.abs(alone.as_numpy("generated_image")[0].astype(int) - pixels[row]).max() <= 2


async def test_mixed_inputs_and_outputs(client):
    inputs = [
        tensor("steps", [3], "INT32", binary=False),
        tensor("prompt", PROMPTS[:1]),
        tensor("width", [96], "INT32"),
        tensor("guidance", [4.2], "FP32"),
        tensor("negative_prompt", ["a cat"], binary=False),
    ]
    wanted = [
        triton.InferRequestedOutput("seed_used", binary_data=False),
        triton.InferRequestedOutput("generated_image"),
    ]
    answer = await client.infer(MODEL, inputs, model_version="1", outputs=wanted)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["seed_used", "generated_image"]
    assert answer.as_numpy("generated_image").shape == (1, 128, 96, 3)
    assert answer.as_numpy("seed_used")[0, 0] >= 0


async def test_a_random_seed_makes_the_picture_again(client):
    first = await client.infer(MODEL, [tensor("prompt", PROMPTS[:1])])
    seed = first.as_numpy("seed_used")
    again = await client.infer(MODEL, [tensor("prompt", PROMPTS[:1]), tensor("seed", seed, "INT64")])
    assert np.array_equal(first.as_numpy("generated_image"), again.as_numpy("generated_image"))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests(client, algorithm):
    inputs = [tensor("prompt", PROMPTS), tensor("steps", [1, 1, 1], "INT32", binary=False)]
    answer = await client.infer(
        MODEL, inputs, request_compression_algorithm=algorithm, response_compression_algorithm="gzip"
    )
    assert answer.as_numpy("generated_image").shape == (3, 128, 128, 3)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([tensor("prompt", ["a fox"] * 11)], "11 rows"),
        ([tensor("prompt", [" "])], "blank"),
        ([tensor("prompt", PROMPTS), tensor("seed", [1], "INT64")], "first dimensions"),
        ([tensor("prompt", PROMPTS[:2]), tensor("width", [64, 128], "INT32")], "width differs"),
        ([tensor("prompt", PROMPTS[:1]), tensor("width", [100], "INT32")], "multiples of 16"),
        ([tensor("prompt", PROMPTS[:1]), tensor("seed", [1], "INT32")], "datatype 'INT32', not INT64"),
        ([tensor("prompt", PROMPTS[:1]), tensor("seed", [-2], "INT64")], "seed is -2"),
        ([tensor("prompt", PROMPTS[:1]), tensor("guidance", [float("nan")], "FP32")], "finite"),
        ([tensor("prompt", PROMPTS[:1]), tensor("sharpness", [1.0], "FP32")], "sharpness"),
    ],
)
async def test_a_bad_request_says_what_is_wrong(client, inputs, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        await client.infer(MODEL, inputs)
    assert caught.value.status() == "400"


async def test_the_row_at_fault_is_named(client):
    with pytest.raises(InferenceServerException, match="row 1: steps is 51"):
        await client.infer(MODEL, [tensor("prompt", PROMPTS[:2]), tensor("steps", [50, 51], "INT32")])


async def test_unknown_models_parts_and_features(client):
    with pytest.raises(InferenceServerException, match="unknown model: 'sdxl'") as caught:
        await client.infer("sdxl", [tensor("prompt", PROMPTS[:1])])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="is a part") as caught:
        await client.infer("denoiser", [tensor("prompt", PROMPTS[:1])])
    assert caught.value.status() == "501"
    wanted = [triton.InferRequestedOutput("generated_image", class_count=3)]
    with pytest.raises(InferenceServerException, match="classification") as caught:
        await client.infer(MODEL, [tensor("prompt", PROMPTS[:1])], outputs=wanted)
    assert caught.value.status() == "501"
    shared = triton.InferInput("prompt", [1, 1], "BYTES")
    shared.set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        await client.infer(MODEL, [shared])
    assert caught.value.status() == "501"


async def test_priority_reaches_the_queue(client, service):
    for priority in (0, 1, 2, 3):
        await client.infer(MODEL, [tensor("prompt", PROMPTS[:1]), tensor("steps", [1], "INT32")], priority=priority)
    newest = await service.find(JobQuery(limit=4))
    assert [job.priority for job in newest] == ["batch", "standard", "interactive", "interactive"]
    with pytest.raises(InferenceServerException, match="priority is 4"):
        await client.infer(MODEL, [tensor("prompt", PROMPTS[:1])], priority=4)


async def test_what_waits_too_long_is_dropped_while_others_run(stuck, serving):
    async with stuck() as service, serving(service.app) as base_url, connected(base_url) as client:
        first = asyncio.create_task(client.infer(MODEL, [tensor("prompt", PROMPTS[:1])]))
        await service.until(queued=0, running=1)
        begun = time.monotonic()
        with pytest.raises(InferenceServerException, match="Request timeout expired") as caught:
            await client.infer(MODEL, [tensor("prompt", PROMPTS[:2])], timeout=200_000)
        assert caught.value.status() == "503"
        assert time.monotonic() - begun < 5
        await service.until(queued=0, running=1)
        first.cancel()
        await service.until(queued=0, running=0)


async def test_a_full_queue_takes_no_row(stuck, serving):
    async with (
        stuck(queue={"max_depth": 3}) as service,
        serving(service.app) as base_url,
        connected(base_url) as client,
    ):
        first = asyncio.create_task(client.infer(MODEL, [tensor("prompt", PROMPTS[:1])]))
        await service.until(queued=0, running=1)
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as caught:
            await client.infer(MODEL, [tensor("prompt", PROMPTS * 2)])
        assert caught.value.status() == "503"
        await service.until(queued=0, running=1)
        first.cancel()
        await service.until(queued=0, running=0)


async def test_a_failing_row_fails_the_request(stuck, serving):
    async with (
        stuck(OutOfMemory("no memory left")) as service,
        serving(service.app) as base_url,
        connected(base_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="no memory left") as caught:
            await client.infer(MODEL, [tensor("prompt", PROMPTS)])
        assert caught.value.status() == "500"
        await service.until(queued=0, running=0)


async def test_a_starting_service(stuck, serving):
    async with stuck(ready=False) as service, serving(service.app) as base_url, connected(base_url) as client:
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready(MODEL)
        states = {entry["state"] for entry in await client.get_model_repository_index()}
        assert states == {"LOADING"}
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(MODEL, [tensor("prompt", PROMPTS[:1])])
        assert caught.value.status() == "503"


def counts(model: dict) -> tuple[int, int]:
    return model["inference_stats"]["success"]["count"], model["inference_count"]


async def stats(client) -> dict[str, dict]:
    answer = await client.get_inference_statistics()
    return {model["name"]: model for model in answer["model_stats"]}


async def test_a_batch_of_three_is_one_request_and_three_inferences(client):
    before = await stats(client)
    await client.infer(MODEL, [tensor("prompt", PROMPTS), tensor("steps", [2] * 3, "INT32")])
    after = await stats(client)
    assert np.subtract(counts(after[MODEL]), counts(before[MODEL])).tolist() == [1, 3]
    assert counts(after["denoiser"])[1] - counts(before["denoiser"])[1] == 3
    assert after[MODEL]["last_inference"] > before[MODEL]["last_inference"]
    assert (
        after[MODEL]["inference_stats"]["compute_infer"]["ns"] > before[MODEL]["inference_stats"]["compute_infer"]["ns"]
    )
    [denoiser] = (await client.get_inference_statistics("denoiser", "1"))["model_stats"]
    assert denoiser == after["denoiser"]


async def test_a_remembered_prompt_counts_as_a_hit_of_the_text_encoder(client):
    """perf_analyzer gives up where a part of the ensemble did not count a request of the whole."""
    inputs = [tensor("prompt", ["a prompt that nobody else sends"]), tensor("steps", [1], "INT32")]
    told = []
    for _ in range(3):
        told.append((await stats(client))["text_encoder"])
        await client.infer(MODEL, inputs)
    told.append((await stats(client))["text_encoder"])
    counted = {
        name: np.diff([part["inference_stats"][name]["count"] for part in told]).tolist()
        for name in ("success", "queue", "cache_miss", "cache_hit")
    }
    assert counted == {"success": [1, 1, 1], "queue": [1, 1, 1], "cache_miss": [1, 0, 0], "cache_hit": [0, 1, 1]}
    assert np.diff([part["inference_count"] for part in told]).tolist() == [1, 0, 0]


async def test_every_number_of_the_statistics_is_an_integer(client):
    def numbers(value):
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [number for child in children for number in numbers(child)] if children or value in ({}, []) else [value]

    for model in (await stats(client)).values():
        assert {type(value) for value in numbers(model)} <= {int, str}
        stages = [model["inference_stats"][f"compute_{stage}"]["count"] for stage in ("input", "infer", "output")]
        assert len(set(stages)) == 1, "perf_analyzer ends where they differ"
        assert set(model["inference_stats"]) == {
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        }


async def test_a_failed_batch_is_one_failure(stuck, serving):
    async with (
        stuck(OutOfMemory("no memory left")) as service,
        serving(service.app) as base_url,
        connected(base_url) as client,
    ):
        with pytest.raises(InferenceServerException):
            await client.infer(MODEL, [tensor("prompt", PROMPTS)])
        await service.until(queued=0, running=0)
        whole = (await stats(client))[MODEL]
    assert whole["inference_stats"]["fail"]["count"] == 1
    assert counts(whole) == (0, 0)
