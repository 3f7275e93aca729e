"""ControlNets on disk, told apart and verified without torch; in groups of steps, in memory and in the fleet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageControlNetModel
from safetensors.torch import load_file, save_file

from serve.architecture import TransformerConfig
from serve.controlnets import FILES, ControlConfig, _config
from serve.engine.controlnet import load
from serve.engine.memory import Memory, Vram
from serve.engine.schedule import Batcher, Entry, Shape
from serve.errors import ConfigError, WeightsError
from serve.jobs.fleet import Fleet
from serve.messages import ImageRequest, Phase, ReplicaState
from serve.settings import EMBEDDED_FOLDER, Settings
from serve.step_times import StepTimes
from serve.weights import tensors_in
from tests import control_files

SHIPPED = EMBEDDED_FOLDER / "controlnets" / "lines"
WEIGHTS = "diffusion_pytorch_model.safetensors"
REQUEST = ImageRequest(model="z-image-turbo", prompt="a fox", width=64, height=64, steps=4, seed=1)


def settings(path: Path, **more: Any) -> Settings:
    return Settings.model_validate({"controlnets": {"it": {"weights": str(path)} | more}})


def refused(path: Path, **more: Any) -> str:
    with pytest.raises(WeightsError) as error:
        FILES.open(settings(path, **more), EMBEDDED_FOLDER)
    assert error.value.hint
    assert error.value.param is None or error.value.param.startswith("controlnets.it")
    assert FILES.problems(settings(path, **more), EMBEDDED_FOLDER)[0].message == error.value.message
    return error.value.message


@pytest.mark.parametrize("kind", control_files.KINDS)
def test_every_kind_is_verified_and_counted(tmp_path: Path, kind: str) -> None:
    file = FILES.open(settings(control_files.write(tmp_path / kind, kind)), EMBEDDED_FOLDER)["it"]
    net = control_files.random(kind)
    assert file.parameters == sum(parameter.numel() for parameter in net.parameters())
    loaded = load(file, torch.device("cpu"), torch.float32)
    assert loaded.nbytes == 4 * file.parameters
    assert 1 < file.work < 2.2


def test_work_is_that_of_the_blocks_which_run() -> None:
    model = TransformerConfig(
        all_patch_size=(2,), all_f_patch_size=(1,), axes_dims=(32, 48, 48), cap_feat_dim=2560, dim=3840,
        in_channels=16, n_heads=30, n_layers=30, n_refiner_layers=2,
    )  # fmt: skip
    first = ControlConfig(control_layers_places=tuple(range(0, 30, 5)), control_in_dim=16)
    second = ControlConfig(
        control_layers_places=tuple(range(0, 30, 2)),
        control_refiner_layers_places=(0, 1),
        control_in_dim=33,
        add_control_noise_refiner="control_noise_refiner",
    )
    assert first.problem(model) is None
    assert first.work(model) == 1 + 8 / 32
    assert second.problem(model) is None
    assert second.work(model) == 1 + 19 / 32


def test_a_file_a_folder_and_another_place_of_the_same_weights(tmp_path: Path) -> None:
    folder = control_files.write(tmp_path / "net", "plain")
    of_folder = FILES.open(settings(folder), EMBEDDED_FOLDER)["it"]
    of_file = FILES.open(settings(folder / WEIGHTS, scale=0.5), EMBEDDED_FOLDER)["it"]
    assert of_folder.digest == of_file.digest
    assert (of_folder.scale, of_file.scale) == (0.75, 0.5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"control_layers_places": [0, 1, 2]}))
    assert FILES.open(settings(folder), EMBEDDED_FOLDER)["it"].digest != of_file.digest
    assert FILES.located(settings(folder), EMBEDDED_FOLDER)["it"].weights == str(folder / WEIGHTS)


def test_one_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = control_files.write(tmp_path / "net", "plain")
    config = json.loads((folder / "config.json").read_text())
    for changes, told in [
        ({"dim": 3840}, "dim is 3840, but the model's is 192"),
        ({"control_in_dim": 4}, "control_in_dim is 4, but the model's pictures have 16"),
        ({"control_layers_places": [0, 4, 9]}, "do not rise from 0 within the model's 6 layers"),
        ({"control_layers_places": [2, 4]}, "do not rise from 0"),
        ({"control_layers_places": [0, 2, 4, 5]}, "control_layers.3.attention.to_q.weight is not there"),
        ({"control_in_dim": 33}, "has shape [192, 64], expected [192, 132]"),
        ({"add_control_noise_refiner": "other"}, "add_control_noise_refiner"),
        ({"control_refiner_layers_places": [0]}, "do not belong together"),
        ({"add_control_noise_refiner": "control_layers", "control_refiner_layers_places": [3]}, "are not among"),
        ({"all_patch_size": [4]}, "lacks the patch size 2"),
        ({"_class_name": "ControlNetModel"}, "_class_name is 'ControlNetModel'"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | changes))
        assert told in refused(folder), changes
    (folder / "config.json").write_text("[]")
    assert "is not a JSON object" in refused(folder)


def test_a_broken_or_missing_file_is_refused(tmp_path: Path) -> None:
    folder = control_files.write(tmp_path / "net", "bare")
    assert "is not on this machine" in refused(tmp_path / "nowhere")
    assert "holds no other.safetensors" in refused(folder, file="other.safetensors")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-10])
    assert "truncated" in refused(folder)
    assert "holds 0 .safetensors files" in refused(tmp_path)


def test_an_adapter_is_no_controlnet(tmp_path: Path) -> None:
    adapter = EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors"
    assert "it is no ControlNet of Z-Image" in refused(adapter)


@pytest.mark.parametrize(
    ("layers", "before", "expected"),
    [(6, None, None), (15, None, "control_layers"), (15, 0.0, "control_layers"), (15, 0.5, "control_noise_refiner")],
)
def test_published_files_are_known_without_a_config(
    tmp_path: Path, layers: int, before: float | None, expected: str | None
) -> None:
    """By the same marks as diffusers' `infer_diffusers_model_type`, over the names of the tensors that matter."""
    tensors = {f"control_layers.{i}.after_proj.weight": torch.ones(1) for i in range(layers)}
    tensors |= {f"control_noise_refiner.{i}.attention.to_q.weight": torch.ones(1) for i in range(2)}
    tensors["control_all_x_embedder.2-1.weight"] = torch.zeros(192, 4 * (16 if layers == 6 else 33))
    if before is not None:
        tensors["control_noise_refiner.0.before_proj.weight"] = torch.full((2, 2), before, dtype=torch.bfloat16)
    path = tmp_path / "union.safetensors"
    save_file(tensors, path)
    model = TransformerConfig.model_validate_json((EMBEDDED_FOLDER / "transformer" / "config.json").read_bytes())
    config = _config("union", path, tensors_in(path), model)
    assert config.add_control_noise_refiner == expected
    assert config.control_layers_places == tuple(range(0, 30, 30 // layers))
    assert config.control_refiner_layers_places == (None if expected is None else (0, 1))
    assert config.control_in_dim == (16 if layers == 6 else 33)


def test_one_of_three_layers_needs_its_config(tmp_path: Path) -> None:
    folder = control_files.write(tmp_path / "net", "plain")
    (folder / "config.json").unlink()
    assert "it has 3 control layers, and no config.json" in refused(folder)


def test_a_file_that_changes_under_a_running_service_is_not_loaded(tmp_path: Path) -> None:
    folder = control_files.write(tmp_path / "net", "bare")
    file = FILES.open(settings(folder), EMBEDDED_FOLDER)["it"]
    control_files.write(folder, "bare", seed=2)
    with pytest.raises(WeightsError, match="has changed since the start"):
        load(file, torch.device("cpu"), torch.float32)


def test_the_shipped_one_is_what_diffusers_reads() -> None:
    net = ZImageControlNetModel.from_pretrained(SHIPPED)
    assert set(net.state_dict()) == set(load_file(SHIPPED / WEIGHTS))
    assert (SHIPPED / WEIGHTS).stat().st_size < 1_500_000


def test_settings_bound_scale_and_name() -> None:
    for bad in ({"it": {"weights": "x", "scale": 2.5}}, {"It": "x"}, {"it": {"weights": "x", "strength": 1}}):
        with pytest.raises(ValueError, match="controlnets"):
            Settings.model_validate({"controlnets": bad})


def test_one_larger_than_the_bytes_for_all_stops_the_start(tmp_path: Path) -> None:
    from serve.engine.open import Placement, open_controlnets

    path = control_files.write(tmp_path / "net", "plain")
    small = settings(path).model_copy(update={"controlnet_bytes": 1 << 20})
    with pytest.raises(ConfigError, match=r"controlnet 'it' takes .* bytes, controlnet_bytes is 1,048,576"):
        open_controlnets(small, EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))


def test_one_that_is_to_know_masks_must_have_the_channels(tmp_path: Path) -> None:
    for kind, known in (("plain", False), ("own", True)):
        folder = control_files.write(tmp_path / kind, kind)
        found = Settings.model_validate({"controlnets": {"it": {"weights": str(folder), "masks": True}}})
        told = [problem.message for problem in FILES.problems(found, EMBEDDED_FOLDER)]
        assert (not told) is known
        if not known:
            assert "masks is true, but control_in_dim is 16, and one that knows masks has 33" in told[0]


# --- in groups, in time, in memory


def entry(id: str, shape: Shape) -> Entry:
    return Entry(id, shape, 4, 0.0, 100.0)


def test_only_requests_of_one_controlnet_share_a_step() -> None:
    times = StepTimes()
    plain, lines = Shape(64, 64, (32,)), Shape(64, 64, (32,), controlnet="lines")
    times.expect("lines", 1.5)
    times.observe_step(plain.tokens, 1, 1.0)
    times.observe_step(plain.tokens, 4, 1.0)
    entries = [entry("a", lines), entry("b", plain), entry("c", lines), entry("d", replace(lines, controlnet="x"))]
    batch = Batcher(times, 4).fill(entries[0], entries, 0.0)
    assert [it.id for it in batch] == ["a", "c"]
    assert Batcher(times, 4).step_seconds(lines) == 1.5 * Batcher(times, 4).step_seconds(plain)


class Fixed:
    """A device on which all work takes the same."""

    def read(self) -> Vram:
        return Vram(0, 0, 10**9)

    def peak(self, work: Any) -> int:
        work()
        return 1_000_000

    def free(self) -> None: ...

    def alive(self) -> bool:
        return True


def test_a_step_with_one_is_given_more_memory() -> None:
    memory, plain = Memory(Fixed()), Shape(64, 64, (32,))
    large = Shape(256, 256, (32,))
    assert memory.measure_step(large, 1, lambda: None)
    assert memory.step_bytes(replace(large, controlnet="lines")) > memory.step_bytes(large)
    assert memory.step_bytes(plain) > 0


# --- in the fleet


def denoiser(id: str, **more: Any) -> ReplicaState:
    return ReplicaState(replica_id=id, role="denoiser", phase=Phase.READY, engine="e", slots=4, **more)


def test_the_cache_knows_the_files_and_requests_go_where_theirs_is() -> None:
    fleet = Fleet(heartbeat_s=10)
    files = {"controlnets": {"lines": "c0ffee"}, "adapters": {"ink": "1234"}}
    fleet.beat(denoiser("cold", **files, adapters_held=("ink",)), 0.0)
    fleet.beat(denoiser("warm", **files, adapters_held=("ink",), controlnets_held=("lines",)), 0.0)
    controlled = replace(REQUEST, controlnet="lines")
    assert fleet.engine_of(controlled) == "e+c0ffee"
    assert fleet.engine_of(replace(controlled, adapter="ink")) == "e+1234+c0ffee"
    assert fleet.engine_of(replace(controlled, adapter="none")) == ""
    assert fleet.engine_of(REQUEST) == "e"
    assert fleet.place("a", replace(controlled, adapter="ink"), alone=False) == "warm"
    assert fleet.place("b", controlled, alone=False) == "warm"


def test_hashes_from_before_there_were_controlnets_stay_good() -> None:
    assert not {"controlnet", "control_image", "controlnet_conditioning_scale"} & REQUEST.said().keys()
    controlled = replace(REQUEST, controlnet="lines", control_image="a" * 64, controlnet_conditioning_scale=0.5)
    assert controlled.said()["controlnet_conditioning_scale"] == 0.5
    assert controlled.inputs == ("a" * 64,)
    assert replace(controlled, image="a" * 64).inputs == ("a" * 64,)
