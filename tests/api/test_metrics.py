"""What is scraped, after pictures were drawn by the real model."""

from prometheus_client.parser import text_string_to_metric_families


async def scraped(client) -> dict[str, float]:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(response.text)
    return {series(sample): sample.value for family in families for sample in family.samples}


def series(sample) -> str:
    inside = ",".join(f"{label}={value}" for label, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{inside}}}" if inside else sample.name


async def growth(client, *requests) -> dict[str, float]:
    before = await scraped(client)
    for body in requests:
        await client.post("/v1/images/generations", json=body)
    after = await scraped(client)
    assert all(after[name] >= value for name, value in before.items() if name.endswith(("_total", "_count", "_sum")))
    return {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name)}


async def test_a_read_after_an_answer_includes_it(client, fox):
    body = fox | {"prompt": "a prompt that nobody has encoded before", "n": 2, "seed": 77_001}
    grown = await growth(client, body)
    assert grown["nv_inference_request_success{model=z-image-turbo,version=1}"] == 1
    assert grown["nv_inference_count{model=z-image-turbo,version=1}"] == 2
    assert grown["nv_inference_count{model=text_encoder,version=1}"] == 1
    assert 1 <= grown["nv_inference_exec_count{model=denoiser,version=1}"] <= 2
    assert grown["zimage_images_total{format=png,model=z-image-turbo}"] == 2
    assert grown["zimage_request_duration_seconds_count{model=z-image-turbo}"] == 1
    assert grown["zimage_stage_duration_seconds_count{model=z-image-turbo,stage=denoise}"] == 2
    assert grown["zimage_batch_size_count{model=z-image-turbo,stage=step}"] >= 8


async def test_a_refused_body_is_no_failed_job(client):
    grown = await growth(client, {"prompt": ""})
    assert not any(name.startswith(("nv_inference_request_failure", "zimage_jobs_total")) for name in grown)


async def test_nothing_is_counted_before_the_first_request_and_gpu_gauges_have_no_sample(stuck, door):
    async with stuck() as service, door(service.app) as client:
        seen = await scraped(client)
    assert seen["nv_inference_request_success{model=z-image-turbo,version=1}"] == 0
    assert not any(name.startswith(("zimage_vram", "zimage_gpu", "nv_gpu")) for name in seen)
    assert seen["zimage_ready{model=z-image-turbo}"] == 1


async def test_the_queue_is_seen(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        for priority in ("interactive", "standard", "batch", "batch"):
            await client.post("/v1/jobs", json=fox | {"priority": priority})
        await service.until(running=1, queued=3)
        seen = await scraped(client)
    assert seen["zimage_jobs_running{model=z-image-turbo}"] == 1
    assert seen["zimage_queue_depth{model=z-image-turbo,priority=batch}"] == 2
    assert seen["zimage_queue_oldest_age_seconds{model=z-image-turbo}"] > 0
    assert seen["nv_inference_pending_request_count{model=denoiser,version=1}"] == 3
