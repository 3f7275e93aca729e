"""Adapters: which files are served, how long they stay in memory, and that nobody else waits for them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.adapters import FILES, AdapterFile
from serve.engine.adapters import Adapters, no_adapters
from serve.engine.lora import Adapter, load
from serve.engine.schedule import Batcher, Entry, Shape
from serve.errors import ConfigError, InvalidRequest, OutOfMemory, WeightsError
from serve.jobs.cache import key_of
from serve.jobs.fleet import Fleet
from serve.messages import ImageRequest, Phase, ReplicaState
from serve.settings import EMBEDDED_FOLDER, Settings
from serve.step_times import StepTimes
from tests import adapter_files

CPU = torch.device("cpu")
PLAIN = ImageRequest(model="m", prompt="a cat", width=64, height=64, steps=4, seed=1)


def opened(weights: Path | str, **more: Any) -> dict[str, AdapterFile]:
    return FILES.open(Settings.model_validate({"adapters": {"it": {"weights": str(weights), **more}}}), EMBEDDED_FOLDER)


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(adapter_files.diffusers(path))
    change(tensors)
    save_file(tensors, path)
    return path


# --- files


def test_a_file_a_folder_and_a_text_name_the_same(tmp_path: Path) -> None:
    path = adapter_files.diffusers(tmp_path / "one.safetensors")
    by_folder = opened(tmp_path)["it"]
    assert by_folder == opened(path)["it"]
    assert by_folder.path == path
    assert Settings.model_validate({"adapters": {"a": str(path)}}).adapters["a"].scale == 1.0


def test_of_several_files_in_a_folder_one_has_to_be_named(tmp_path: Path) -> None:
    adapter_files.diffusers(tmp_path / "one.safetensors")
    adapter_files.comfy(tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"holds 2 \.safetensors files") as refused:
        opened(tmp_path)
    assert refused.value.hint == "set adapters.it.file to one of: one.safetensors, two.safetensors"
    assert opened(tmp_path, file="two.safetensors")["it"].path.name == "two.safetensors"


def test_a_hub_id_that_is_not_here_says_how_to_fetch_it() -> None:
    with pytest.raises(WeightsError, match="nobody/style is not on this machine") as refused:
        opened("nobody/style")
    assert refused.value.hint == "hf download nobody/style --revision main"


@pytest.mark.parametrize("write", [adapter_files.diffusers, adapter_files.comfy, adapter_files.kohya])
def test_every_format_is_verified_and_loaded(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    file = opened(write(tmp_path / "a.safetensors"))["it"]
    adapter = load(file, CPU, torch.float32)
    assert len(adapter.blocks) == 8  # six layers and two refiners
    assert adapter.nbytes <= 4 * file.parameters


KEY = "transformer.layers.0.attention.to_q.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({KEY: torch.zeros(4, 96)}), f"{KEY}: has shape [4, 96], but [rank, 192] fits"),
        (lambda t: t.pop(KEY.replace("_A", "_B")), f"{KEY}: its other half (up) is missing"),
        (
            lambda t: t.update({"transformer.layers.9.attention.to_q.lora_A.weight": t[KEY].clone()}),
            "layers.9.attention",
        ),
        (lambda t: t.update({"transformer.layers.0.attention.to_q.dora_scale": t[KEY].clone()}), "it is a DoRA"),
        (lambda t: t.update({"layers.0.attention.to_q.lokr_w1": t[KEY].clone()}), "it is a LoKr"),
        (lambda t: t.update({"lora_te_q.lora_down.weight": t[KEY].clone()}), "changes the text encoder"),
        (lambda t: t.update({"transformer.layers.0.bias": t[KEY].clone()}), "no LoRA has a tensor of this name"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
    ids=["shape", "half", "unknown", "dora", "lokr", "text encoder", "name", "empty"],
)
def test_what_does_not_fit_is_refused_with_file_key_and_fix(tmp_path: Path, change: Any, told: str) -> None:
    path = changed(tmp_path / "a.safetensors", change)
    with pytest.raises(WeightsError) as refused:
        opened(path)
    assert str(path) in refused.value.message
    assert told in refused.value.message
    assert refused.value.hint


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = adapter_files.diffusers(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is truncated: 100 of"):
        opened(path)


def test_every_bad_one_is_found_at_once(tmp_path: Path) -> None:
    good = adapter_files.diffusers(tmp_path / "good.safetensors")
    settings = Settings.model_validate({"adapters": {"good": str(good), "gone": "/no/such", "none": "no/such"}})
    assert [error.param for error in FILES.problems(settings, EMBEDDED_FOLDER)] == [
        "adapters.gone.weights",
        "adapters.none.weights",
    ]


def test_a_file_that_changed_since_the_start_is_not_loaded(tmp_path: Path) -> None:
    path = adapter_files.diffusers(tmp_path / "a.safetensors")
    file = opened(path)["it"]
    adapter_files.diffusers(path, seed=99)
    with pytest.raises(WeightsError, match="has changed since the start"):
        load(file, CPU, torch.float32)


def test_alpha_and_rank_in_the_metadata_count_as_in_peft(tmp_path: Path) -> None:
    tensors = load_file(adapter_files.diffusers(tmp_path / "a.safetensors"))
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {r"layers\.0\..*": 1}}
    path = adapter_files.write(
        tmp_path / "a.safetensors", tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    )
    adapter = load(opened(path)["it"], CPU, torch.float32)
    for block, scaling in (("layers.0", 1 / 4), ("layers.1", 8 / 4)):
        up = tensors[f"transformer.{block}.feed_forward.w2.lora_B.weight"]
        assert torch.allclose(adapter.blocks[block]["w2"].ups[0][2], up * scaling)


# --- memory


def file_of(name: str, parameters: int = 10) -> AdapterFile:
    return AdapterFile(name=name, path=Path(name), digest=name, parameters=parameters, scale=1.0, preload=False)


class Loader:
    """Loads nothing, and that only when `open` is set; notes what it was asked for."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.loaded: list[str] = []

    def __call__(self, file: AdapterFile) -> Adapter:
        assert self.open.wait(10)
        self.loaded.append(file.name)
        return Adapter(file.name, file.digest, {}, {}, nbytes=file.parameters)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def adapters(loader: Loader) -> Adapters:
    return Adapters({name: file_of(name) for name in "abc"}, loader, budget=20, item_bytes=1)


async def use(adapters: Adapters, name: str) -> Adapter:
    async with adapters.lent(name) as adapter:
        return adapter


def held(adapters: Adapters) -> tuple[str, ...]:
    state = ReplicaState(replica_id="d", role="denoiser", phase=Phase.READY)
    return adapters.report(state).adapters_held


async def test_the_least_recently_used_goes(adapters: Adapters, loader: Loader) -> None:
    first = await use(adapters, "a")
    await use(adapters, "b")
    assert await use(adapters, "a") is first
    await use(adapters, "c")
    assert held(adapters) == ("a", "c")
    assert loader.loaded == ["a", "b", "c"]
    assert not first.retired


async def test_what_is_in_use_never_goes_and_the_next_one_waits(adapters: Adapters) -> None:
    async with adapters.lent("a") as a, adapters.lent("b"):
        waiting = asyncio.create_task(use(adapters, "c"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert held(adapters) == ("a", "b")
        assert not a.retired
    await asyncio.wait_for(waiting, 5)
    assert "c" in held(adapters)
    assert a.retired
    assert adapters.nbytes <= 20


async def test_all_who_want_one_wait_for_one_load(adapters: Adapters, loader: Loader) -> None:
    loader.open.clear()
    users = [asyncio.create_task(use(adapters, "a")) for _ in range(5)]
    await asyncio.sleep(0.02)
    users[0].cancel()
    await asyncio.sleep(0.02)
    loader.open.set()
    await asyncio.gather(*users[1:])
    assert loader.loaded == ["a"]


async def test_a_load_that_fails_fails_only_those_who_wait_and_is_tried_again(loader: Loader) -> None:
    fails = [True]

    def flaky(file: AdapterFile) -> Adapter:
        if fails.pop() if fails else False:
            raise WeightsError("broken")
        return loader(file)

    adapters = Adapters({"a": file_of("a")}, flaky, budget=10, item_bytes=1)
    with pytest.raises(WeightsError, match="broken"):
        await use(adapters, "a")
    assert (await use(adapters, "a")).name == "a"


async def test_without_memory_its_requests_are_told_so() -> None:
    def full(file: AdapterFile) -> Adapter:
        raise torch.OutOfMemoryError

    adapters = Adapters({"a": file_of("a")}, full, budget=10, item_bytes=1)
    with pytest.raises(OutOfMemory, match="no memory for adapter 'a'"):
        await use(adapters, "a")


async def test_an_unknown_one_is_told_with_those_there_are(adapters: Adapters) -> None:
    with pytest.raises(InvalidRequest, match="no adapter 'z'") as refused:
        await use(adapters, "z")
    assert refused.value.hint == "there are: a, b, c"


def counts(adapters: Adapters) -> dict[str, float]:
    """By metric and adapter, since the last look, and how many loads were timed."""
    tally = adapters.recorder.drain()
    assert tally is not None
    timed = sum(len(seconds) for seconds in tally.observed.values())
    return {f"{name} {labels[1]}": value for (name, labels), value in tally.counts.items()} | {"timed": timed}


async def test_what_happens_to_them_is_counted_by_name(adapters: Adapters) -> None:
    await adapters.preload()
    assert set(counts(adapters).values()) == {0}, "all series are there before anything happens"
    for name in ("a", "b", "c", "b"):
        await use(adapters, name)
    assert counts(adapters) == {
        "zimage_adapter_loads_total a": 1,
        "zimage_adapter_loads_total b": 1,
        "zimage_adapter_loads_total c": 1,
        "zimage_adapter_evictions_total a": 1,
        "timed": 3,
    }


async def test_a_load_that_fails_is_counted_once_for_all_who_waited() -> None:
    def broken(file: AdapterFile) -> Adapter:
        raise WeightsError("broken")

    adapters = Adapters({"a": file_of("a")}, broken, budget=10, item_bytes=1)
    answers = await asyncio.gather(use(adapters, "a"), use(adapters, "a"), return_exceptions=True)
    assert all(isinstance(answer, WeightsError) for answer in answers)
    assert counts(adapters) == {"zimage_adapter_load_failures_total a": 1, "timed": 0}


async def test_a_heartbeat_says_how_much_memory_they_take(adapters: Adapters) -> None:
    state = ReplicaState(replica_id="d", role="denoiser", phase=Phase.READY)
    assert adapters.report(state).adapter_bytes == 0
    await use(adapters, "a")
    assert adapters.report(state).adapter_bytes == 10
    assert no_adapters().report(state).adapter_bytes is None


def test_one_that_never_fits_is_refused_at_the_start(loader: Loader) -> None:
    with pytest.raises(ConfigError, match="takes 11 bytes, adapter_bytes is 10"):
        Adapters({"a": file_of("a", 11)}, loader, budget=10, item_bytes=1)


async def test_preloaded_ones_are_there_before_anybody_asks(loader: Loader) -> None:
    files = {"a": replace(file_of("a"), preload=True), "b": file_of("b")}
    adapters = Adapters(files, loader, budget=20, item_bytes=1)
    await adapters.preload()
    assert held(adapters) == ("a",)


# --- who shares a step, and where it goes


def entry(id: str, adapter: tuple[str, float] | None) -> Entry:
    return Entry(id, Shape(64, 64, (32,), adapter), 4, 0.0, 100.0)


def test_requests_of_other_adapters_or_scales_are_no_company() -> None:
    batcher = Batcher(StepTimes(), 8)
    plain, one, same = entry("p", None), entry("1", ("a", 1.0)), entry("2", ("a", 1.0))
    others = [plain, one, same, entry("3", ("a", 0.5)), entry("4", ("b", 1.0)), entry("5", None)]
    assert [it.id for it in batcher.company(one, others)] == ["2"]
    assert [it.id for it in batcher.company(plain, others)] == ["5"]


def denoiser(id: str, digest: str = "1", held: tuple[str, ...] = ()) -> ReplicaState:
    return ReplicaState(
        replica_id=id, role="denoiser", phase=Phase.READY, engine="e", slots=8, adapters={"a": digest},
        adapters_held=held,
    )  # fmt: skip


def test_a_replica_that_holds_the_adapter_is_preferred_while_it_is_not_much_fuller() -> None:
    fleet = Fleet(60)
    fleet.beat(denoiser("empty"), 0.0)
    fleet.beat(denoiser("holds", held=("a",)), 0.0)
    with_it = replace(PLAIN, adapter="a")
    placed = [fleet.place(str(at), with_it, alone=False) for at in range(6)]
    assert placed[:2] == ["holds", "holds"]
    assert "empty" in placed
    assert fleet.place("x", PLAIN, alone=False) == "empty"


def test_the_adapters_file_is_part_of_the_cache_key() -> None:
    fleet, with_it = Fleet(60), replace(PLAIN, adapter="a")
    assert fleet.engine_of(with_it) == ""  # nobody knows yet
    fleet.beat(denoiser("d", "1"), 0.0)
    before = key_of(with_it, fleet.engine_of(with_it))
    plain = key_of(PLAIN, fleet.engine_of(PLAIN))
    fleet.beat(denoiser("d", "2"), 1.0)
    assert key_of(with_it, fleet.engine_of(with_it)) != before
    assert key_of(PLAIN, fleet.engine_of(PLAIN)) == plain
    assert fleet.engine_of(replace(PLAIN, adapter="other")) == ""
    assert key_of(with_it, "e") != key_of(replace(with_it, adapter_scale=0.5), "e") != key_of(PLAIN, "e")


def test_keys_of_requests_without_what_came_later_are_what_they_were() -> None:
    assert key_of(PLAIN, "engine") == "d666a2b53ee8311dd3e065d6ba5fbf456e0580bac326badb8eb3137c4985da7d"
    assert PLAIN.said().keys() == {
        "model", "prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "n", "output_format",
        "output_compression", "deterministic",
    }  # fmt: skip
