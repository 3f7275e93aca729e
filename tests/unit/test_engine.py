"""The step loop over the real tiny model: who leaves, who fails, and that nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from serve.engine.engine import Engine
from serve.engine.flight import Drawn, Generation
from serve.engine.open import Placement, open_engine
from serve.engine.zimage import Row
from serve.errors import DeadlineExceeded, ZImageError
from serve.settings import EMBEDDED_FOLDER, Settings


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    settings = Settings(warmup_sizes_px=(64,))
    engine = open_engine(settings, EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))
    yield engine
    engine.stop()


def generation(id: str = "g", **changes: object) -> Generation:
    plain = Generation(
        id=id,
        height=64,
        width=64,
        steps=4,
        seed=1,
        embedding=torch.ones(20, 128),
        negative=None,
        guidance=0.0,
        deadline=time.monotonic() + 60,
        hard_deadline=False,
        alone=False,
        preview_steps=frozenset(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def ignore(step: int, preview: object) -> None:
    pass


async def test_steps_are_told_in_order_with_previews_where_asked(engine: Engine) -> None:
    told: list[tuple[int, bool]] = []
    asked = generation(preview_steps=frozenset({2}))
    drawn = await engine.draw(asked, lambda step, preview: told.append((step, preview is not None)))
    assert told == [(0, False), (1, False), (2, True), (3, False), (4, False)]
    assert drawn.pixels.shape == (64, 64, 3)
    assert engine.silent_s() == 0.0


async def test_a_cancelled_one_takes_no_further_step(engine: Engine) -> None:
    steps: list[int] = []
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_step(step: int, preview: object) -> None:
        steps.append(step)
        if step == 3:
            loop.call_soon_threadsafe(begun.set)

    caller = asyncio.create_task(engine.draw(generation("long", steps=50, height=128, width=128), on_step))
    await begun.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await engine.draw(generation("after"), ignore)
    assert steps[-1] < 40


async def test_past_a_hard_deadline_it_is_dropped_and_past_a_soft_one_it_is_not(engine: Engine) -> None:
    late = time.monotonic() - 1
    with pytest.raises(DeadlineExceeded, match="0 of 4 steps"):
        await engine.draw(generation(deadline=late, hard_deadline=True), ignore)
    assert isinstance(await engine.draw(generation(deadline=late), ignore), Drawn)


async def test_a_poisonous_member_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forward = engine.transformer.segments

    def brittle(rows: list[Row], parts: int) -> Iterator[torch.Tensor]:
        if any(row.latents.isnan().any() for row in rows):
            raise RuntimeError("a kernel failed")
        return forward(rows, parts)

    noise = engine.transformer.noise
    monkeypatch.setattr(engine.transformer, "segments", brittle)
    monkeypatch.setattr(engine.transformer, "noise", lambda seed, h, w: noise(seed, h, w) / (0 if seed == 13 else 1))
    outcomes = await asyncio.gather(
        *(
            engine.draw(generation(str(seed), seed=seed, origin={"request_id": f"r{seed}"}), ignore)
            for seed in (12, 13, 14)
        ),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Drawn, ZImageError, Drawn]
    assert "kernel" not in str(outcomes[1])
    log = "".join(capfd.readouterr())
    assert "a kernel failed" in log, "the operator's log has the reason"
    assert "r13" in log


async def test_an_embedding_of_the_wrong_size_fails_only_its_own_request(engine: Engine) -> None:
    wrong, right = await asyncio.gather(
        engine.draw(generation("wrong", embedding=torch.ones(3, 7)), ignore),
        engine.draw(generation("right"), ignore),
        return_exceptions=True,
    )
    assert isinstance(wrong, RuntimeError)
    assert isinstance(right, Drawn)
