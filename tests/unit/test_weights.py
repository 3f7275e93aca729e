"""Broken copies of the embedded model: each names the file, what is wrong, and the fix."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serve.errors import WeightsError
from serve.settings import EMBEDDED_FOLDER, Settings
from serve.weights import HubId, bytes_of, resolve, verify

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def refusal(model: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        verify(model)
    return caught.value


def as_float32(file: Path) -> dict[str, np.ndarray]:
    """The tensors by name; numpy has no bfloat16, so only shapes are kept."""
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    return {key: np.zeros(entry["shape"], np.float32) for key, entry in header.items() if key != "__metadata__"}


def test_embedded_model_is_whole():
    verify(EMBEDDED_FOLDER)


def test_copy_is_whole_and_its_size_is_that_of_its_parts(model: Path):
    verify(model)
    (model / "README.md").write_text("not a component")
    parts = [file for file in EMBEDDED_FOLDER.glob("*/*") if file.is_file()]
    assert bytes_of(model) == sum(f.stat().st_size for f in parts if f.parent.name not in ("adapters", "controlnets"))


@pytest.mark.parametrize(
    "name",
    [
        TRANSFORMER,
        ENCODER,
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_missing_file(model: Path, name: str):
    (model / name).unlink()
    error = refusal(model)
    assert error.message == f"{model / name} is missing"
    assert error.hint == f"copy the file again from where the folder came from, or: zimage download HUB_ID --to {model}"


def test_missing_index(model: Path):
    (model / "model_index.json").unlink()
    error = refusal(model)
    assert error.message == f"{model}/model_index.json is missing: this folder is not in diffusers' layout"
    assert "point `model` at the folder" in error.hint


def test_missing_chat_template(model: Path):
    (model / "tokenizer/chat_template.jinja").unlink()
    assert "chat_template.jinja is missing" in refusal(model).message
    edit(model / "tokenizer/tokenizer_config.json", chat_template="{{ messages }}")
    verify(model)


def test_slow_tokenizer_only(model: Path):
    (model / "tokenizer/tokenizer.json").rename(model / "tokenizer/vocab.json")
    error = refusal(model)
    assert "tokenizer.json is missing (vocab.json and merges.txt alone are not read)" in error.message
    assert "save_pretrained" in error.hint


def test_truncated_by_one_byte(model: Path):
    data = (model / TRANSFORMER).read_bytes()
    (model / TRANSFORMER).write_bytes(data[:-1])
    error = refusal(model)
    assert error.message == f"{model / TRANSFORMER} is truncated: 1 of {len(data):,} bytes are missing"
    assert "zimage download" in error.hint


def test_one_byte_too_many(model: Path):
    with (model / ENCODER).open("ab") as file:
        file.write(b"\0")
    assert "is damaged: 1 bytes follow the 1,545,776 that belong to it" in refusal(model).message


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "is not a safetensors file (0 bytes)"),
        (7, "is not a safetensors file (7 bytes)"),
        (100, "is truncated within its header (100 bytes of 13,360 and the data)"),
    ],
)
def test_truncated_header(model: Path, keep: int, message: str):
    (model / TRANSFORMER).write_bytes((model / TRANSFORMER).read_bytes()[:keep])
    assert refusal(model).message == f"{model / TRANSFORMER} {message}"


@pytest.mark.parametrize("header", [b"{nonsense", b"[1, 2, 3]", b'{"a": 1}', b'{"a": {"shape": [1]}}'])
def test_garbage_header(model: Path, header: bytes):
    (model / TRANSFORMER).write_bytes(len(header).to_bytes(8, "little") + header)
    assert str(model / TRANSFORMER) in refusal(model).message
    assert "damaged" in refusal(model).message


def test_something_else_as_weights(model: Path):
    (model / TRANSFORMER).write_bytes(b"<html>404 Not Found</html>")
    assert refusal(model).message == f"{model / TRANSFORMER} is not a safetensors file (26 bytes)"


@pytest.mark.parametrize("name", [TRANSFORMER, "vae/config.json", "tokenizer/tokenizer.json", "model_index.json"])
def test_git_lfs_pointer(model: Path, name: str):
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10273968\n")
    error = refusal(model)
    assert error.message == f"{model / name} is a git-LFS pointer, not the file itself"
    assert error.hint == f"git -C {model} lfs pull"


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("text", ['{"dim": 19', "", "\x00\xff", '"a string"'])
def test_garbage_json(model: Path, name: str, text: str):
    (model / name).write_text(text)
    assert refusal(model).message.startswith(f"{model / name} is damaged: not ")


def test_garbage_bytes_in_json(model: Path):
    (model / "vae/config.json").write_bytes(b"\xff\xfe\x00")
    assert refusal(model).message.startswith(f"{model}/vae/config.json is damaged: not valid JSON")


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("ZImageImg2ImgPipeline", " (its pictures need more than a prompt)"),
        ("ZImageOmniPipeline", " (its pictures need more than a prompt)"),
        ("FluxPipeline", ""),
        (None, ""),
    ],
)
def test_another_pipeline(model: Path, pipeline: str | None, reason: str):
    edit(model / "model_index.json", _class_name=pipeline)
    error = refusal(model)
    assert error.message == (
        f"{model}/model_index.json: _class_name is {pipeline!r}{reason}, but only ZImagePipeline is served"
    )
    assert "Tongyi-MAI/Z-Image-Turbo" in error.hint


@pytest.mark.parametrize("entry", [["diffusers", "FluxTransformer2DModel"], None, "ZImageTransformer2DModel", []])
def test_another_component_in_the_index(model: Path, entry: Any):
    edit(model / "model_index.json", transformer=entry)
    assert refusal(model).message == (
        f"{model}/model_index.json: transformer is {entry!r}, expected ZImageTransformer2DModel"
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("transformer/config.json", {"_class_name": "DiT"}, "class is DiT, expected ZImageTransformer2DModel"),
        (
            "text_encoder/config.json",
            {"architectures": ["LlamaModel"]},
            "class is LlamaModel, expected Qwen3Model or Qwen3ForCausalLM",
        ),
        ("text_encoder/config.json", {"architectures": None}, "class is not given, expected Qwen3Model"),
        ("transformer/config.json", {"dim": None}, "dim: Field required"),
        ("transformer/config.json", {"n_layers": "six"}, "n_layers: Input should be a valid integer"),
        ("transformer/config.json", {"axes_dims": [8, 12, 16]}, "dim 192 / n_heads 6 is not the sum of axes_dims"),
        ("transformer/config.json", {"all_patch_size": [4]}, "all_patch_size [4] lacks the patch size 2"),
        ("transformer/config.json", {"siglip_feat_dim": 1152}, "siglip_feat_dim is set"),
        ("vae/config.json", {"shift_factor": None}, "shift_factor: Field required"),
        ("vae/config.json", {"block_out_channels": [32, 64, 64]}, "1/4 of the picture's side, expected 1/8"),
        ("vae/config.json", {"latent_channels": 4}, "latent_channels is 4, but in_channels in transformer/config.json"),
        ("text_encoder/config.json", {"hidden_size": 2560}, "hidden_size is 2560, but cap_feat_dim in transformer"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "class is DDIMScheduler"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "stochastic_sampling is on"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas is on"),
    ],
)
def test_config_that_is_not_served(model: Path, name: str, changes: dict[str, Any], message: str):
    edit(model / name, **changes)
    error = refusal(model)
    assert error.message.startswith(f"{model / name}: ")
    assert message in error.message
    assert error.hint.startswith("use a model that fits together")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "transformer/config.json",
            {"n_layers": 7},
            "transformer: no weight file holds layers.6.attention.to_q.weight, which transformer/config.json calls for",
        ),
        (
            "transformer/config.json",
            {"dim": 384, "n_heads": 12},
            "all_x_embedder.2-1.weight has shape [192, 64], but transformer/config.json calls for [384, 64]",
        ),
        (
            "vae/config.json",
            {"block_out_channels": [32, 64, 64, 128]},
            "vae: decoder.conv_in.weight has shape [64, 16, 3, 3], but vae/config.json calls for [128, 16, 3, 3]",
        ),
        (
            "text_encoder/config.json",
            {"intermediate_size": 512},
            "layers.0.mlp.down_proj.weight has shape [128, 256], but text_encoder/config.json calls for [128, 512]",
        ),
    ],
)
def test_weights_of_another_architecture(model: Path, name: str, changes: dict[str, Any], message: str):
    edit(model / name, **changes)
    assert refusal(model).message.endswith(message)


def test_pickled_weights(model: Path):
    (model / TRANSFORMER).rename(model / "transformer/diffusion_pytorch_model.bin")
    error = refusal(model)
    assert error.message.startswith(f"{model}/transformer/diffusion_pytorch_model.bin is a pickle")
    assert "if you trust it" in error.hint


def shard(model: Path) -> Path:
    """Splits the transformer into two shards and an index, as large models come."""
    tensors = as_float32(model / TRANSFORMER)
    names = [TRANSFORMER.replace(".safe", f"-0000{i}-of-00002.safe") for i in (1, 2)]
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, model / name)
    weight_map = {key: Path(name).name for name, half in zip(names, halves, strict=True) for key in half}
    (model / f"{TRANSFORMER}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / TRANSFORMER).unlink()
    return model / names[1]


def test_shards(model: Path):
    shard(model)
    verify(model)


def test_missing_shard(model: Path):
    last = shard(model)
    last.unlink()
    assert refusal(model).message == f"{last} is missing"


def test_truncated_shard(model: Path):
    last = shard(model)
    last.write_bytes(last.read_bytes()[:-4096])
    assert re.search(
        r"00002-of-00002\.safetensors is truncated: 4,096 of [\d,]+ bytes are missing", refusal(model).message
    )


def test_empty_shard_index(model: Path):
    shard(model)
    (model / f"{TRANSFORMER}.index.json").write_text("{}")
    assert refusal(model).message.endswith("index.json lists no shards")


def test_text_encoder_saved_with_its_language_head(model: Path):
    tensors = {f"model.{key}": value for key, value in as_float32(model / ENCODER).items()}
    save_file(tensors, model / ENCODER)
    edit(model / "text_encoder/config.json", architectures=["Qwen3ForCausalLM"])
    verify(model)
    assert "model.norm.weight" in load_file(model / ENCODER)


def test_damaged_embedded_weights_come_from_git(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.weights.EMBEDDED_FOLDER", model)
    (model / ENCODER).unlink()
    assert refusal(model).hint.startswith("git checkout -- ")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the Hugging Face cache of this test hold a model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def fill(ref: str = "main") -> Path:
        snapshot = tmp_path / "models--acme--fox" / "snapshots" / COMMIT
        shutil.copytree(EMBEDDED_FOLDER, snapshot)
        (tmp_path / "models--acme--fox" / "refs").mkdir()
        (tmp_path / "models--acme--fox" / "refs" / ref).write_text(COMMIT)
        return snapshot

    return fill


def test_resolve_embedded():
    assert resolve(Settings()) == EMBEDDED_FOLDER


def test_resolve_folder(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve(Settings(model=str(model))) == resolve(Settings(model="~/model")) == model


def test_resolve_snapshot_of_a_hub_id(cache: Callable[..., Path]):
    snapshot = cache()
    assert resolve(Settings(model="acme/fox")) == snapshot


def test_resolve_revision(cache: Callable[..., Path]):
    snapshot = cache(ref="v2")
    assert resolve(Settings(model="acme/fox@v2")) == resolve(Settings(model=f"acme/fox@{COMMIT}")) == snapshot


def test_hub_id_that_was_not_downloaded(cache: Callable[..., Path]):
    with pytest.raises(WeightsError, match="acme/fox is not on this machine") as caught:
        resolve(Settings(model="acme/fox"))
    assert caught.value.hint == "zimage download acme/fox"


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/fox", "nowhere", "a/b/c"])
def test_no_such_folder(name: str):
    with pytest.raises(WeightsError, match="there is no folder") as caught:
        resolve(Settings(model=name))
    assert "hub id such as" in caught.value.hint


@pytest.mark.parametrize(("ref", "fix"), [("main", "acme/fox"), ("v2", f"acme/fox@{COMMIT}")])
def test_damaged_download_is_fetched_again(cache: Callable[..., Path], ref: str, fix: str):
    snapshot = cache(ref)
    (snapshot / ENCODER).unlink()
    assert refusal(snapshot).hint == f"zimage download {fix}"


def test_hub_ids():
    assert HubId.parse("Tongyi-MAI/Z-Image-Turbo") == HubId("Tongyi-MAI/Z-Image-Turbo")
    assert str(HubId.parse("acme/fox@refs/pr/1")) == "acme/fox@refs/pr/1"
    assert HubId.parse("../fox") is None
