"""The fast paths against diffusers' and transformers' modules, and a picture's steps under load."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from serve.engine.graphs import Graphs
from serve.engine.open import Placement, decoder_of, fastest_ops, graphs_on, take_over
from serve.engine.qwen3 import Qwen3
from serve.engine.zimage import Row, ZImageTransformer, patchify
from tests.gpu import models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = [(64, 64), (96, 128), (256, 256), (768, 768), (1536, 1536)]
SLACK = 1.15  # our distance from fp32 in units of diffusers' own in bf16


def placement(*, fp8: bool = False) -> Placement:
    return Placement(torch.device("cuda"), torch.bfloat16, fp8)


def taken_over(*, fp8: bool = False, graphs: Graphs | None = None) -> ZImageTransformer:
    model = models.transformer().to(torch.bfloat16)
    graphs = graphs_on(torch.device("cuda")) if graphs is None else graphs
    return take_over(model, models.SCHEDULER, placement(fp8=fp8), graphs)


@pytest.fixture(scope="module")
def ours() -> Iterator[ZImageTransformer]:
    yield taken_over()
    torch.cuda.empty_cache()


def row(ours: ZImageTransformer, height: int, width: int, *, seed: int = 0, tokens: int = 40, step: int = 0) -> Row:
    caption = ours.caption(models.noise(tokens, models.EMBEDDING, seed=seed))
    latents = patchify(models.noise(16, height // 8, width // 8, seed=seed))
    return Row(latents, caption, ours.schedule(8, 0), step, height, width)


def diffusers_step(model: torch.nn.Module, height: int, width: int) -> Tensor:
    dtype = next(model.parameters()).dtype
    latents = models.noise(16, height // 8, width // 8).to(dtype).unsqueeze(1)
    caption = models.noise(40, models.EMBEDDING).to(dtype)
    with torch.inference_mode():
        (output,) = model([latents], torch.zeros(1, device="cuda"), [caption], return_dict=False)[0]
    return -patchify(output.squeeze(1)).float()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_step_is_as_near_to_fp32_as_diffusers_in_bf16(ours: ZImageTransformer, height: int, width: int) -> None:
    model = models.transformer()
    exact = diffusers_step(model, height, width)
    theirs = models.apart(diffusers_step(model.to(torch.bfloat16), height, width), exact)
    distance = models.apart(ours.velocity([row(ours, height, width)])[0], exact)
    print(f"{height}x{width}: ours {distance:.4f}, diffusers {theirs:.4f} from fp32")
    assert distance <= SLACK * theirs


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_launched_recorded_and_replayed_are_the_same_bits(height: int, width: int) -> None:
    ours = taken_over()
    wanted = row(ours, height, width, step=3)
    launched, recorded, replayed = (ours.velocity([wanted]).clone() for _ in range(3))
    assert torch.equal(launched, recorded)
    assert torch.equal(launched, replayed)


def test_replays_read_the_inputs_of_the_day(ours: ZImageTransformer) -> None:
    """Other latents, captions and steps than those that were recorded; two rows as guidance needs them."""
    batches = [[row(ours, 96, 128, seed=seed, step=seed), row(ours, 96, 128, seed=9)] for seed in range(5)]
    plain = ZImageTransformer.velocity
    results = [plain(ours, batch) for batch in batches]
    graphs, ours.graphs = ours.graphs, None
    expected = [plain(ours, batch) for batch in batches]
    ours.graphs = graphs
    assert all(torch.equal(result, reference) for result, reference in zip(results, expected, strict=True))


def test_a_picture_alone_and_under_load_is_the_same_bits(ours: ZImageTransformer) -> None:
    """Eight steps at 768² while other shapes run between them, and between the parts of a long step."""

    def draw(*, load: bool) -> Tensor:
        long = row(ours, 1536, 1536, seed=5)
        picture = row(ours, 768, 768, seed=1)
        for step in range(8):
            picture.step = step
            parts = ours.segments([long], 3)
            for part in parts if load else ():
                del part
                ours.velocity([row(ours, 256, 256, seed=step), row(ours, 256, 256, seed=step + 1)])
            sigmas = picture.schedule.sigmas
            picture.latents = picture.latents + (sigmas[step + 1] - sigmas[step]) * ours.velocity([picture])[0]
        return picture.latents

    assert torch.equal(draw(load=False), draw(load=True))


def test_parts_of_a_long_step_outlive_what_runs_between_them(ours: ZImageTransformer) -> None:
    long, short = row(ours, 1536, 1536, seed=2), row(ours, 512, 512, seed=3)
    undisturbed = [ours.velocity([long]) for _ in range(3)][-1]
    for _ in range(3):
        ours.velocity([short])
    parts = []
    for part in ours.segments([long], 3):
        ours.velocity([short])
        ours.velocity([row(ours, 1536, 1536, seed=4)])  # of the same shape, too
        parts.append(part)
    assert len(parts) == 3
    assert torch.equal(parts[-1], undisturbed)


def test_the_least_recently_used_shape_is_forgotten() -> None:
    graphs = Graphs(torch.device("cuda"), budget_bytes=1, scratch_bytes=1 << 30)
    small = taken_over(graphs=graphs)
    first, second = row(small, 64, 64), row(small, 96, 128)
    expected = [small.velocity([first]) for _ in range(2)][-1]
    for _ in range(3):
        small.velocity([second])
    assert graphs.count == 1
    assert torch.equal(small.velocity([first]), expected)
    graphs.forget()
    assert graphs.count == 0
    assert torch.equal(small.velocity([first]), expected)


def test_what_takes_too_much_scratch_is_launched_kernel_by_kernel() -> None:
    graphs = Graphs(torch.device("cuda"), budget_bytes=1 << 30, scratch_bytes=0)
    small = taken_over(graphs=graphs)
    wanted = row(small, 96, 128)
    first, *later = (small.velocity([wanted]) for _ in range(4))
    assert graphs.count == 0
    assert all(torch.equal(first, one) for one in later)


def test_what_runs_is_not_forgotten(ours: ZImageTransformer) -> None:
    long = row(ours, 1536, 1536, seed=2)
    undisturbed = [ours.velocity([long]) for _ in range(3)][-1]
    parts = []
    for part in ours.segments([long], 3):
        assert ours.graphs is not None
        ours.graphs.forget()
        parts.append(part)
    assert torch.equal(parts[-1], undisturbed)


def test_fp8_is_near_bf16(ours: ZImageTransformer) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the card has no FP8")
    quantized = taken_over(fp8=True)
    exact = ours.velocity([row(ours, 256, 256)])
    for _ in range(3):
        distance = models.apart(quantized.velocity([row(quantized, 256, 256)]), exact)
    print(f"FP8 is {distance:.3f} from bf16")
    assert distance < 0.15


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 128, 96), (1, 1024, 1024)])
def test_decoding_is_as_near_to_fp32_as_diffusers_in_bf16(batch: int, height: int, width: int) -> None:
    vae = models.vae()
    latents = models.noise(batch, 16, height // 8, width // 8)
    with torch.inference_mode():
        exact = vae.decode(latents / 0.3611 + 0.1159, return_dict=False)[0]
        half = copy.deepcopy(vae).to(torch.bfloat16)
        theirs = half.decode(latents.to(torch.bfloat16) / 0.3611 + 0.1159, return_dict=False)[0]
    decoder = decoder_of(half, placement(), graphs_on(torch.device("cuda")))
    pictures = [torch.stack([torch.from_numpy(p) for p in decoder.decode(list(latents))]) for _ in range(3)]
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])
    expected, theirs = ((x.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu() * 255 for x in (exact, theirs))
    distance, reference = (models.apart(x.float(), expected) for x in (pictures[0], theirs.round()))
    print(f"decoding {height}x{width}: ours {distance:.4f}, diffusers {reference:.4f} from fp32")
    assert distance <= SLACK * reference + 0.001


@pytest.mark.parametrize(("rows", "length"), [(1, 32), (3, 64), (1, 512)])
def test_encoding_is_as_near_to_fp32_as_transformers_in_bf16(rows: int, length: int) -> None:
    model = models.text_encoder()
    ids = torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(length)).to("cuda")
    with torch.inference_mode():
        exact = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2]
        half = model.to(torch.bfloat16)
        theirs = half(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2]
        forward = Qwen3(half, fastest_ops(placement()), graphs_on(torch.device("cuda")))
    launched, recorded, replayed = (forward(ids).clone() for _ in range(3))
    assert torch.equal(launched, recorded)
    assert torch.equal(launched, replayed)
    assert models.apart(launched, exact) <= SLACK * models.apart(theirs, exact)
