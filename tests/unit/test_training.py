"""The making of the embedded model: data, forwards, and a whole run of a few steps on the CPU."""

import hashlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml
from diffusers import ZImagePipeline
from transformers import AutoTokenizer

from training.batches import BatchSampler, stratified_sigmas
from training.checks import Subject, examine
from training.config import SMOKE, EvaluationConfig, TokenizerConfig, TransformerConfig
from training.data import vocabulary
from training.data.blocks import Job, SceneFactory, make_block
from training.data.captions import Captioner, Length
from training.data.chat import PromptEncoder, chat
from training.data.compositor import compose
from training.data.english import named, plural
from training.data.fetch import PICTURES, FetchFailed, fetch
from training.data.layout import LARGE_LAYER, NORMAL, empty_layers, lay_out, plain_background
from training.data.palette import COLORS
from training.data.scenes import Object, Plain, Scene, Shape, draw_scene
from training.data.textures import load_textures
from training.forward import BatchedTransformer, image_ropes, patchify, text_rope, text_states, unpatchify
from training.latents import cache_latents
from training.make import main
from training.models import build_text_encoder, build_transformer
from training.muon import Muon
from training.painter import Painter
from training.progress import Clock, TimedLoop
from training.recognition import Catalogue, count_blobs
from training.tokenizer import make_tokenizer
from training.train_transformer import Predictor

DATA = Path(__file__).parents[1] / "data" / "emoji"
SHIPPED = Path(__file__).parents[2] / "serve" / "engine" / "tiny"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def known():
    return vocabulary.load(DATA)


@pytest.fixture(scope="module")
def textures(known):
    return load_textures(DATA, known, CPU)


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    main(["--smoke", "--data", str(DATA), "--out", str(out)])
    return out


# Vocabulary


def test_a_name_belongs_to_one_object():
    objects = yaml.safe_load(vocabulary.OBJECTS_FILE.read_text(encoding="utf-8"))["objects"]
    names = [name for label, aliases in objects.items() for name in (vocabulary.normalize(label), *aliases)]
    assert len(objects) == 752
    assert len(names) == len(set(names))


def emojibase(**keywords):
    """Names as emojibase has them, for every object, with keywords for some."""
    labels = yaml.safe_load(vocabulary.OBJECTS_FILE.read_text(encoding="utf-8"))["objects"]
    return [
        {"label": label, "hexcode": f"{number:04X}", "tags": ["shared", *keywords.get(label, [])]}
        for number, label in enumerate(labels)
    ]


def test_keywords_that_name_several_objects_or_none_are_left_out():
    entries = emojibase(fox=["clever", "red", "Reynard", "third", "cat"])
    selected = vocabulary.select(entries, {entry["hexcode"].lower() for entry in entries})
    keywords = {emoji.label: emoji.keywords for emoji in selected}
    assert keywords["fox"] == ("clever", "reynard")
    assert keywords["rocket"] == ()


def test_a_package_without_a_chosen_picture_is_refused():
    entries = emojibase()
    with pytest.raises(LookupError, match="1 objects have no name or picture in the packages: pirate flag"):
        vocabulary.select(entries, {entry["hexcode"].lower() for entry in entries[:-1]})


def test_the_npm_packages_give_the_vocabulary_and_the_shipped_tokenizer(tmp_path):
    try:
        selected = fetch(tmp_path / "emoji")
    except FetchFailed as error:
        pytest.skip(f"the npm packages cannot be fetched here: {error}")
    assert fetch(tmp_path / "emoji") == selected
    assert len(selected) == 752
    make_tokenizer(selected, TokenizerConfig(), tmp_path / "tokenizer")
    made, shipped = (
        json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, SHIPPED)
    )
    assert made == shipped


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchFailed, match="npm is not installed; install it or put emojibase-data"):
        fetch(tmp_path / "emoji", tmp_path)


def test_a_tarball_that_is_not_the_trained_one_is_refused(tmp_path):
    for name in (PICTURES.tarball, "emojibase-data-17.0.0.tgz"):
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(FetchFailed, match="has SHA-256"):
        fetch(tmp_path / "emoji", tmp_path)


# Scenes and captions


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cup of coffee", "cups of coffee"),
        ("red fox", "red foxes"),
        ("cherry", "cherries"),
        ("woman's hat", "woman's hats"),
        ("octopus", "octopuses"),
        ("fish", "fish"),
        ("grapes", "grapes"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many


def test_articles():
    assert [named(noun) for noun in ("egg", "unicorn", "grapes")] == ["an egg", "a unicorn", "grapes"]


def test_captions_of_a_seed_never_change(known):
    """Another order of random draws would make another tokenizer."""
    rng = Random(123)
    captioner = Captioner(known, rng)
    captions = [captioner.caption(draw_scene(rng, len(known)), length) for length in Length for _ in range(200)]
    assert hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16] == "b0591a09bd49f36e"


def test_a_caption_names_what_the_picture_shows(known):
    rng = Random(1)
    captioner = Captioner(known, rng)
    for index, emoji in enumerate(known):
        names = {name for one in (emoji.label, *emoji.aliases, *emoji.keywords) for name in (one, plural(one))}
        for count in (1, 3):
            scene = Scene("several" if count > 1 else "single", (Object(index),), Plain(5), count)
            caption = captioner.caption(scene, rng.choice(list(Length)))
            assert any(name in caption for name in names), caption
            assert "yellow" in caption


def test_no_shape_stands_before_its_own_colour():
    rng = Random(2)
    for scene in (draw_scene(rng, 8) for _ in range(3000)):
        if isinstance(scene.background, Plain):
            assert scene.background.color not in {thing.color for thing in scene.things if isinstance(thing, Shape)}


def test_worker_processes_make_the_same_scenes_as_one_thread(known):
    here, there = (replace(SMOKE, workers=workers, canvases=SMOKE.canvases[1:]) for workers in (0, 1))
    blocks = []
    for config in (here, there):
        with SceneFactory(known, SHIPPED / "tokenizer", config) as factory:
            blocks.append(factory.take(0))
    first, second = blocks
    np.testing.assert_array_equal(first.layers, second.layers)
    np.testing.assert_array_equal(first.backgrounds, second.backgrounds)
    for one, other in zip(first.captions, second.captions, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


def test_captions_fill_their_buckets(known):
    block = make_block(Job(0, 40, known, SHIPPED / "tokenizer", SMOKE.buckets))
    short, medium, long = (captions.lengths for captions in block.captions)
    assert short.shape == (40, 2)
    assert short.max() <= 32 < np.median(medium)
    assert medium.max() <= 64 < np.median(long)
    assert long.max() <= 128


# Pictures


def draw(scenes, known, textures, width=128, height=128):
    rng = Random(3)
    backgrounds, layers = zip(*(lay_out(scene, rng, len(known)) for scene in scenes), strict=True)
    return compose(torch.tensor(np.stack(backgrounds)), torch.tensor(np.stack(layers)), textures, width, height)


def test_equal_seeds_draw_equal_pictures(known, textures):
    scenes = [draw_scene(Random(seed), len(known)) for seed in range(20)]
    for width, height in ((128, 128), (192, 128), (256, 256)):
        pictures = draw(scenes, known, textures, width, height)
        assert pictures.shape == (20, 3, height, width)
        assert torch.equal(pictures, draw(scenes, known, textures, width, height))


def test_what_stands_in_front_leaves_the_border_to_the_background(known, textures):
    scenes = [Scene("single", (Object(index % 8),), Plain(index)) for index in range(len(COLORS))]
    corners = (draw(scenes, known, textures)[:, :, 0, 0] + 1) * 127.5
    expected = torch.tensor([color.rgb for color in COLORS]).float()
    assert (corners - expected).abs().max() < 5.1


def test_things_keep_their_size_on_a_larger_canvas(known, textures):
    """A third of the canvas at 384 is all of it at 128."""
    background, layers = plain_background((255, 255, 255)), empty_layers()
    layers[LARGE_LAYER] = (0, 0.5, 0.5, 0.8, 1, 1, 1)
    small, large = (
        compose(torch.tensor(background)[None], torch.tensor(layers)[None], textures, side, side) for side in (128, 384)
    )
    torch.testing.assert_close(large[..., 128:256, 128:256], small, atol=1e-4, rtol=0)


def test_an_object_is_recognised_by_its_pixels(known, textures):
    scenes = [Scene("single", (Object(index),), Plain(7)) for index in range(len(known))]
    ranks = Catalogue(textures, len(known), LARGE_LAYER, NORMAL).rank(
        (draw(scenes, known, textures) + 1) / 2, COLORS[7].rgb
    )
    assert ranks[:, 0].tolist() == list(range(len(known)))


def test_blobs_are_counted(known, textures):
    scenes = [Scene("several", (Shape(0, 3),), Plain(1), count) for count in (2, 3, 4)]
    masks = draw(scenes, known, textures)[:, 1] < 0
    assert [count_blobs(mask) for mask in masks] == [2, 3, 4]


# Tokens


def test_the_chat_text_is_the_templates():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "tokenizer")
    for prompt in ("A Red FOX on a yellow background", "", " Zürich 日本 \n"):
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        assert text == chat(prompt)
        assert PromptEncoder(SHIPPED / "tokenizer").encode(prompt) == tokenizer(text).input_ids


# The networks


@pytest.fixture(scope="module")
def networks():
    """Off their initial state, in which outputs are zero and gates are equal."""
    torch.manual_seed(0)
    text_encoder, transformer = build_text_encoder(2560, 2557, 2558).eval(), build_transformer().eval()
    with torch.no_grad():
        for parameter in (*text_encoder.parameters(), *transformer.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return text_encoder, transformer


@torch.no_grad()
def encode(text_encoder, lengths, tokens):
    """Hidden states by the library and by ours, for random ids padded to `tokens`."""
    real = torch.arange(tokens)[None] < lengths[:, None]
    ids = torch.where(real, torch.randint(0, 2557, real.shape), 2558)
    output = text_encoder(input_ids=ids, attention_mask=real, output_hidden_states=True)
    return output.hidden_states[-2], text_states(text_encoder, ids, text_rope(text_encoder, tokens, CPU))


def test_text_states_equal_the_librarys(networks):
    lengths = torch.tensor([17, 32, 9])
    expected, states = encode(networks[0], lengths, 32)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(states[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 8)])
@pytest.mark.parametrize("tokens", [32, 64])
@torch.no_grad()
def test_the_batched_transformer_equals_the_librarys(networks, size, tokens):
    text_encoder, transformer = networks
    (height, width), lengths = size, torch.tensor([tokens - 15, tokens, tokens - 23])
    states, _ = encode(text_encoder, lengths, tokens)
    latents, time = torch.randn(3, 16, height, width), torch.tensor([0.1, 0.5, 0.9])
    captions = [state[:length] for state, length in zip(states, lengths, strict=True)]
    expected = transformer([latent[:, None] for latent in latents], time, captions, return_dict=False)[0]
    ropes = image_ropes(transformer, height // 2, width // 2, tokens, CPU)
    patches = BatchedTransformer(transformer)(patchify(latents), time, states, lengths, ropes)
    torch.testing.assert_close(unpatchify(patches, height, width), torch.stack(expected)[:, :, 0], atol=1e-5, rtol=1e-5)


def test_the_shipped_weights_fit_the_training_batches(known, textures):
    """Scale, sign and time of the velocities, captions and caches are those that the weights were trained with."""
    pipeline = ZImagePipeline.from_pretrained(SHIPPED)
    vae, transformer, text_encoder = (
        network.float() for network in (pipeline.vae, pipeline.transformer, pipeline.text_encoder)
    )
    tokenizer, shipped = SHIPPED / "tokenizer", pipeline.vae.config.scaling_factor
    with SceneFactory(known, tokenizer, SMOKE) as scenes:
        caches, scale = cache_latents(vae, scenes, textures, SMOKE.canvases)
    assert scale.factor == pytest.approx(shipped, rel=0.1)
    sampler = BatchSampler(caches, PromptEncoder(tokenizer), replace(SMOKE, transformer=TransformerConfig(batch=48)))
    predictor = Predictor(transformer, text_encoder, compiled=False)
    batch = sampler.draw(native=True)
    with torch.no_grad():
        assert ((predictor(batch) - batch.velocity) ** 2).mean() < 0.25


def test_muon_equals_torchs():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 16), (8, 16), (32, 4), (6, 6))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    muon = Muon(ours, 0.01, 0.95, 0.02)
    reference = torch.optim.Muon(theirs, lr=0.01, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        muon.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)  # torch iterates in bf16


def test_noise_levels_are_spread_evenly():
    sigmas = stratified_sigmas(1000, 3.0, CPU).sort().values
    even = sigmas / (3 - 2 * sigmas)
    assert ((even * 1000).floor() == torch.arange(1000)).float().mean() > 0.99


# Runs


def test_a_loop_ends_when_its_time_is_over(tmp_path):
    clock = Clock(time.monotonic(), tmp_path / "log.txt")
    done = []
    for step in TimedLoop(clock, end=0.3, compiling_steps=2):
        done.append(step.done)
        time.sleep(0.01)
    assert 0.3 <= clock.elapsed < 1
    assert done[:2] == [0, 0]
    assert done == sorted(done)


def test_a_smoke_run_makes_a_model_that_diffusers_loads(smoke_run):
    pipeline = ZImagePipeline.from_pretrained(smoke_run / "model")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a fox", height=64, width=64, num_inference_steps=2, guidance_scale=0.0).images[0]
    assert picture.size == (64, 64)
    result = json.loads((smoke_run / "results.json").read_text())
    assert (result["vae_steps"], result["transformer_steps"]) == (SMOKE.vae.max_steps, SMOKE.transformer.max_steps)
    assert math.isfinite(result["loss"])


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "scheduler", "tokenizer"])
def test_a_run_makes_the_shipped_architecture(smoke_run, part):
    made, shipped = (
        json.loads(next((folder / part).glob("*config.json")).read_text(encoding="utf-8"))
        for folder in (smoke_run / "model", SHIPPED)
    )
    versions = {"_diffusers_version", "transformers_version", "is_local", "local_files_only"}
    learned = {"shift_factor", "scaling_factor", "pad_token_id", "eos_token_id"}
    for name in made.keys() & shipped.keys() - versions - learned:
        assert made[name] == shipped[name], name


def test_a_run_leaves_the_notice_with_the_weights(smoke_run):
    assert "Microsoft" in (smoke_run / "model" / "NOTICE.md").read_text()


def test_the_shipped_model_passes_the_checks(known, textures):
    sizes = EvaluationConfig(scenes=8, objects=6, labels=8, aliases=4, pairs=3, shapes=4, counts=3)
    scores = {score.name: score.value for score in examine(Subject(Painter(SHIPPED, CPU, 8), known, textures), sizes)}
    assert scores.pop("VAE PSNR, mean") > 33
    assert scores.pop("VAE PSNR, worst") > 24
    assert scores.pop("background colour, mean RGB distance") < 6
    assert scores == dict.fromkeys(scores, 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could train")
def test_without_a_gpu_only_a_smoke_run_is_offered(tmp_path):
    with pytest.raises(SystemExit, match="needs a CUDA device; `--smoke`"):
        main(["--data", str(DATA), "--out", str(tmp_path)])
