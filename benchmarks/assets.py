"""What a picture costs in the asset store: `python -m benchmarks.assets [FOLDER]`. Milliseconds, median of each."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

from ulid import ULID

from serve.assets.local import LocalAssets

ROUNDS = 40
SIZES = {"23 KB": 23_000, "1.5 MB": 1_500_000}

Act = Callable[[], Awaitable[object]]


async def median_ms(acts: list[Act]) -> float:
    taken = []
    for act in acts:
        began = time.perf_counter()
        await act()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def ids() -> list[str]:
    return [f"{ULID()}-0" for _ in range(ROUNDS)]


async def measure(folder: Path, size: int) -> dict[str, float]:
    assets = LocalAssets(folder)
    pictures = [(asset_id, os.urandom(size)) for asset_id in ids()]
    metadata = {"prompt": "a red fox on a yellow background"}

    def writes(of: list[tuple[str, bytes]]) -> list[Act]:
        return [lambda a=a, d=d: assets.write(a, d, "png", metadata) for a, d in of]  # type: ignore[misc]

    def each(call: Callable[[str], Awaitable[object]]) -> list[Act]:
        return [lambda a=a: call(a) for a, _ in pictures]  # type: ignore[misc]

    found = {"write": await median_ms(writes(pictures))}
    found["write the same bytes again"] = await median_ms(writes([(a, pictures[0][1]) for a in ids()]))
    with mock.patch("os.fsync", return_value=None):
        unsynced = [(a, os.urandom(size)) for a in ids()]
        found["write without fsync"] = await median_ms(writes(unsynced))
    found["link"] = await median_ms(each(lambda a: assets.link(a, f"{ULID()}-0", metadata)))
    found["read, hash verified"] = await median_ms(each(assets.read))
    with mock.patch("serve.assets.store.AssetInfo.fits", return_value=True):
        found["read, not verified"] = await median_ms(each(assets.read))
    found["delete"] = await median_ms(each(assets.delete))
    return found


async def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    columns = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="zimage-assets-", dir=parent) as folder:
            columns[name] = await measure(Path(folder), size)
    print(f"| ms | {' | '.join(columns)} |")
    for act in next(iter(columns.values())):
        print(f"| {act} | {' | '.join(f'{column[act]:.2f}' for column in columns.values())} |")


if __name__ == "__main__":
    asyncio.run(main())
