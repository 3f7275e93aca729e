"""Four deployments, and a picture through all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from PIL import Image

from serve.messages import Preview, Succeeded
from serve.settings import Settings
from tests.wiring.conftest import Wire, draw, service_of


async def test_a_picture_goes_through_all_deployments(wire: Wire, tmp_path: Path) -> None:
    handles = wire(Settings(data=tmp_path, warmup_sizes_px=(64,)))
    assert set(handles) == {"Gateway", "Dispatcher", "TextEncoder", "Denoiser"}
    async with service_of(handles) as service:
        alone, guided = await asyncio.gather(draw(service), draw(service, guidance=2.0, n=2))
    for events, images in ((alone, 1), (guided, 2)):
        assert isinstance(events[-1], Succeeded)
        assert sum(isinstance(event, Preview) for event in events) == images
        assert len(events[-1].images) == images
    (file,) = (tmp_path / "assets").rglob(f"{alone[-1].images[0].asset_id}.png")
    assert np.asarray(Image.open(file)).shape == (64, 64, 3)
