"""Whatever a body says, it is a picture within the limits or an error that names what is wrong."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.api.accept import preferred_image
from serve.api.deps import Door
from serve.api.generation import MAX_SEED, GenerationBody, parse
from serve.api.order import Order, resolve
from serve.errors import ZImageError

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
SIDES = st.integers(0, 20).map(lambda k: 16 * k)
GOOD = {
    "prompt": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    "negative_prompt": st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
    "n": st.integers(0, 11),
    "seed": st.integers(0, MAX_SEED) | st.integers(MAX_SEED - 10, MAX_SEED + 1),
    "size": st.builds("{}x{}".format, SIDES, SIDES) | st.sampled_from(["auto", "", "128x128"]),
    "guidance_scale": st.floats(0, 20) | st.integers(0, 20),
    "num_inference_steps": st.integers(0, 51),
    "quality": st.sampled_from(["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]),
    "output_format": st.sampled_from(["png", "jpeg", "webp"]),
    "output_compression": st.integers(0, 100),
    "stream": st.booleans(),
    "partial_images": st.integers(0, 3),
    "priority": st.sampled_from(["interactive", "standard", "batch"]),
    "deadline_ms": st.integers(0, 10**9),
    "deterministic": st.booleans(),
    "response_format": st.sampled_from(["url", "b64_json"]),
    "model": st.sampled_from(["z-image-turbo", "dall-e-3", "sdxl"]),
}
BODIES = st.fixed_dictionaries(
    {"prompt": GOOD["prompt"]},
    optional={name: st.none() | good for name, good in GOOD.items() if name != "prompt"} | {"surprise": ANY},
)
FUZZ = st.dictionaries(st.sampled_from(sorted(GenerationBody.model_fields)), ANY, max_size=6)
ACCEPT = st.sampled_from(["", "*/*", "image/webp", "image/*", "application/json;q=x", ";,;q=", "image/png;q=0.5, */*"])


@pytest.mark.parametrize("bodies", [BODIES, FUZZ], ids=["nearly right", "anything"])
@given(data=st.data(), accept=ACCEPT)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_picture_within_the_limits_or_an_error_that_says_why(app, bodies, data, accept):
    door = app.state.door
    outcome = resolve_or_refuse(door, data.draw(bodies), accept)
    if isinstance(outcome, ZImageError):
        check_error(outcome)
    else:
        check_order(outcome, door.settings.cap_px)


def resolve_or_refuse(door: Door, body: dict[str, Any], accept: str) -> Order | ZImageError:
    try:
        return resolve(door, *parse(GenerationBody, body), preferred_image(accept))
    except ZImageError as error:
        return error


def check_error(error: ZImageError) -> None:
    assert error.status in (400, 404)
    assert error.param in GenerationBody.model_fields
    assert error.message
    assert error.hint


def check_order(order: Order, cap_px: int) -> None:
    request = order.request
    short, long = sorted((request.width, request.height))
    assert short % 16 == long % 16 == 0
    assert 64 <= short <= long <= min(3 * short, cap_px)
    assert 0 <= request.seed <= request.seed + request.n - 1 <= MAX_SEED
    assert 1 <= request.steps <= 50
    assert request.prompt.strip()
    assert request.n == 1 or not (order.stream or order.raw)
    assert 9 <= order.submission.prompt_tokens <= order.input_tokens <= 1024
    assert request.guided or not request.negative_prompt
