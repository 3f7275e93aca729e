"""Memory that runs out, under the real engine and the tiny model: what is refused, what waits, and who fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from serve.engine.engine import Engine
from serve.engine.flight import Drawn
from serve.engine.memory import CAPTION_TOKENS, Memory
from serve.engine.open import Placement, load_decoder, load_transformer, start
from serve.engine.schedule import Shape
from serve.errors import ConfigError, DeviceLost, OutOfMemory, TooLargeForMemory
from serve.messages import ImageRequest, Phase, ReplicaState
from serve.settings import EMBEDDED_FOLDER, Settings
from tests.unit.cards import WEIGHTS, Card, DecoderOn, TransformerOn
from tests.unit.test_engine import generation, ignore

CPU = Placement(torch.device("cpu"), torch.float32)
TRANSFORMER, DECODER = load_transformer(EMBEDDED_FOLDER, CPU), load_decoder(EMBEDDED_FOLDER, CPU)
PLENTY = 1_000_000
STATE = ReplicaState(replica_id="d", role="denoiser", phase=Phase.READY)

Open = Callable[..., tuple[Engine, Card]]


@pytest.fixture
def opened() -> Iterator[Open]:
    engines: list[Engine] = []

    def open_on(total: int, *, split_ms: float = 0, sizes: tuple[int, ...] = (64, 128)) -> tuple[Engine, Card]:
        card, policy = Card(total), "edf" if split_ms else "static"  # which batches whatever this machine measures
        settings = Settings(warmup_sizes_px=sizes, scheduler={"split_step_ms": split_ms, "policy": policy})
        transformer, decoder = TransformerOn(TRANSFORMER, card), DecoderOn(DECODER, card)
        engine = start(settings, transformer, decoder, Memory(card))  # type: ignore[arg-type]
        engines.append(engine)
        card.steps.clear()
        return engine, card

    yield open_on
    for engine in engines:
        engine.stop()


async def draw(engine: Engine, count: int, **changes: object) -> list[Drawn | BaseException]:
    """They arrive together: behind one that holds the engine up until all are there."""
    gate = threading.Event()
    first = generation("plug", steps=1, alone=True)
    plug = asyncio.create_task(engine.draw(first, lambda *_: assert_true(gate.wait(60))))
    tasks = [asyncio.create_task(engine.draw(generation(f"{n}", seed=n, **changes), ignore)) for n in range(count)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(plug, return_exceptions=True)
    return await asyncio.gather(*tasks, return_exceptions=True)


def assert_true(value: bool) -> None:
    assert value


def pixels(drawn: list[Drawn | BaseException]) -> list[np.ndarray]:
    assert all(isinstance(one, Drawn) for one in drawn), drawn
    return [one.pixels for one in drawn]  # type: ignore[union-attr]


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """To a rounding: rows of one step need not add up in the order of a single one."""
    return all(np.abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in zip(one, other, strict=True))


def test_the_largest_size_that_fits_is_known_after_the_warm_up(opened: Open) -> None:
    engine, _ = opened(WEIGHTS + 1_900)  # a decoding of 128 px needs 1,638
    state = engine.report(STATE, cap_px=256)
    assert state.max_px == 128
    assert (state.vram_used, state.vram_reserved, state.vram_total) == (WEIGHTS, WEIGHTS, WEIGHTS + 1_900)
    assert opened(PLENTY)[0].report(STATE, cap_px=256).max_px is None


def test_a_size_that_does_not_even_warm_up_is_over_the_limit(opened: Open) -> None:
    engine, _ = opened(WEIGHTS + 1_000)  # a step of 128 px fits, but not its decoding
    largest = engine.report(STATE, cap_px=256).max_px
    assert largest is not None
    assert 64 <= largest < 128


def test_a_card_too_small_for_the_smallest_size_stops_the_start(opened: Open) -> None:
    with pytest.raises(ConfigError, match="64x64 does not fit"):
        opened(WEIGHTS + 100)


def test_guidance_needs_two_rows(opened: Open) -> None:
    engine, _ = opened(PLENTY)
    card_free = 1_600  # a row of 128 px needs 960 bytes, of 64 px 480; decoding is left out of account
    engine.memory.capacity, engine.memory._decodes = card_free, {}
    assert engine.memory.max_px(128, rows=1) is None
    assert engine.memory.max_px(128, rows=2) in range(64, 128)


def test_the_largest_picture_to_begin_with_is_told_where_memory_bounds_it(opened: Open) -> None:
    engine, card = opened(PLENTY)
    memory = engine.memory

    def encode(needed: int) -> None:
        with card.hold(needed):
            pass

    memory._encodes = {}  # nothing of what this card's encoder took
    memory.measure_encode(64 * 64, lambda: encode(250))
    memory.measure_encode(128 * 128, lambda: encode(1_000))
    assert engine.report(STATE, cap_px=256).max_input_px is None
    memory.capacity = memory.encode_bytes(128 * 128)
    assert engine.report(STATE, cap_px=256).max_input_px == 128
    memory.capacity -= 1
    assert memory.max_input_px(128) == 112
    with pytest.raises(TooLargeForMemory, match="128x128") as refused:
        memory.check_input(128, 128)
    assert f"{memory.max_input_px(128)}x" in str(refused.value.hint)


class Cached(Card):
    """Something cached is in the way until it is given back."""

    def free(self) -> None:
        self.other = 0


def test_what_fits_once_all_that_is_cached_is_given_back_does_fit() -> None:
    card = Cached(WEIGHTS + 1_000)
    memory = Memory(card)
    card.other = 800

    def work() -> None:
        with card.hold(500):
            pass

    assert memory.measure_decode(64, work)
    assert 500 <= memory.decode_bytes(64) < 600
    card.total = WEIGHTS + 400
    assert not memory.measure_decode(64, work)


@dataclass
class Recording(Cached):
    """The decoding of 128 px and of 192 px leaves so much behind, so often, that no second one fits beside it."""

    times: int = 0

    def peak(self, work: Callable[[], object]) -> int:
        needed = super().peak(work)
        if needed in (1_638, 3_686) and self.times:
            self.times -= 1
            self.other = self.total
        return needed


def largest_on(card: Card) -> int | None:
    settings = Settings(warmup_sizes_px=(64, 128, 192))
    transformer, decoder = TransformerOn(TRANSFORMER, card), DecoderOn(DECODER, card)
    engine = start(settings, transformer, decoder, Memory(card))  # type: ignore[arg-type]
    try:
        return engine.report(STATE, cap_px=192).max_px
    finally:
        engine.stop()


def test_a_size_that_fits_no_second_time_at_the_warm_up_is_over_the_limit() -> None:
    largest = largest_on(Recording(PLENTY, times=100))
    assert largest is not None
    assert 64 <= largest < 128


def test_a_size_that_was_in_the_way_of_itself_once_is_tried_again() -> None:
    assert largest_on(Recording(PLENTY, times=1)) is None, "all that are served fit"


async def test_what_can_never_fit_is_refused_with_the_largest_that_does(opened: Open) -> None:
    engine, card = opened(WEIGHTS + 1_900)
    with pytest.raises(TooLargeForMemory, match="256x256 does not fit") as refused:
        await engine.draw(generation(height=256, width=256), ignore)
    assert refused.value.status == 400
    assert refused.value.param == "size"
    assert "128x128" in str(refused.value.hint)
    assert card.steps == []


async def test_a_batch_that_cannot_fit_is_halved_before_it_is_tried(opened: Open) -> None:
    roomy, _ = opened(PLENTY)
    expected = pixels(await draw(roomy, 4))
    engine, card = opened(PLENTY)
    engine.memory.capacity = 1_100  # of 64 px: two rows of 504
    drawn = pixels(await draw(engine, 4))
    assert max(card.steps) == 2
    assert card.freed == 0
    assert equal(drawn, expected)


async def test_a_step_that_runs_out_of_memory_is_tried_again_in_halves(opened: Open) -> None:
    roomy, _ = opened(PLENTY)
    expected = pixels(await draw(roomy, 4))
    engine, card = opened(PLENTY)
    card.other = PLENTY - WEIGHTS - 1_100  # taken by somebody else after the warm-up: two rows fit, four do not
    drawn = pixels(await draw(engine, 4))
    assert card.freed == 1, "so large a batch is not tried again"
    assert card.steps == [1, *[2] * 8]
    assert card.holds == 0
    assert equal(drawn, expected)
    engine.memory.check(Shape(256, 224, (CAPTION_TOKENS,)))  # one picture with as many tokens is not refused for it


async def test_one_that_runs_out_twice_fails_alone(opened: Open) -> None:
    engine, card = opened(PLENTY)
    card.other = PLENTY - WEIGHTS - 1_200
    large, small = await asyncio.gather(
        engine.draw(generation("large", height=128, width=128), ignore),  # decoding needs 1,638
        engine.draw(generation("small"), ignore),
        return_exceptions=True,
    )
    assert isinstance(large, OutOfMemory)
    assert "128x128" in large.message
    assert isinstance(small, Drawn)
    assert card.freed >= 2
    card.other = 0
    assert isinstance((await draw(engine, 1, height=128, width=128))[0], Drawn), "the next one is not punished"


async def test_memory_that_comes_back_saves_the_step(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, card = opened(PLENTY)
    card.other = PLENTY
    monkeypatch.setattr(card, "free", lambda: setattr(card, "other", 0))
    assert isinstance((await draw(engine, 1))[0], Drawn)


async def test_a_lost_device_gives_all_its_pictures_back_and_takes_no_more(opened: Open) -> None:
    engine, card = opened(PLENTY)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    first = asyncio.create_task(engine.draw(generation("1", steps=50), lambda *_: loop.call_soon_threadsafe(begun.set)))
    await begun.wait()
    second = asyncio.create_task(engine.draw(generation("2", steps=50), ignore))
    card.broken = True
    ends = await asyncio.gather(first, second, engine.draw(generation("3"), ignore), return_exceptions=True)
    assert [type(end) for end in ends] == [DeviceLost] * 3
    assert engine.lost
    assert engine.report(STATE, 256).phase is Phase.LOST


async def test_a_long_step_in_parts_draws_the_same_picture_while_short_ones_pass(opened: Open) -> None:
    whole, _ = opened(PLENTY, sizes=(64, 256))
    expected = pixels(await draw(whole, 1, height=256, width=256, alone=True))
    engine, card = opened(PLENTY, split_ms=0.001 + 1e3 * 2 * whole.times.step_seconds(48), sizes=(64, 256))
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    long = asyncio.create_task(
        engine.draw(
            generation("0", seed=0, height=256, width=256, alone=True),
            lambda *_: loop.call_soon_threadsafe(begun.set),
        )
    )
    await begun.wait()
    shorts = [engine.draw(replace(generation(f"s{i}"), deadline=engine.clock() + 30), ignore) for i in range(3)]
    assert all(isinstance(short, Drawn) for short in await asyncio.gather(*shorts))
    assert np.array_equal((await long).pixels, expected[0])
    engine.stop()
    assert card.holds == 0
    assert engine.memory._reserved == 0, "what was reserved is given back"


def test_a_replica_says_what_it_takes() -> None:
    request = ImageRequest(model="m", prompt="p", width=1024, height=512, steps=8, seed=1)
    guided = replace(request, guidance=3.0)
    state = replace(STATE, max_px=768, max_guided_px=512)
    assert state.takes(request)
    assert not state.takes(guided)
    assert STATE.takes(guided)
