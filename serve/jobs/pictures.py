"""One picture, several jobs: each gets it under an id of its own, which its owner may delete."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from serve.assets.store import AssetStore
from serve.messages import StoredImage, Submission


def asset_id(job_id: str, image: int) -> str:
    return f"{job_id}-{image}"


def owned(submission: Submission, picture: StoredImage) -> bool:
    return picture.asset_id.startswith(f"{submission.job_id}-")


async def link(assets: AssetStore, submission: Submission, pictures: Iterable[StoredImage]) -> tuple[StoredImage, ...]:
    """The job's own copies, without copying. Raises NotFound when one of the pictures is gone; none is linked then."""
    pictures = tuple(pictures)
    linked = await asyncio.gather(*(_link(assets, submission, picture) for picture in pictures), return_exceptions=True)
    done = tuple(picture for picture in linked if isinstance(picture, StoredImage))
    for error in linked:
        if isinstance(error, BaseException):
            await drop(assets, done)
            raise error
    return done


async def drop(assets: AssetStore, pictures: Iterable[StoredImage]) -> None:
    await assets.delete(*(picture.asset_id for picture in pictures))


async def _link(assets: AssetStore, submission: Submission, picture: StoredImage) -> StoredImage:
    request = submission.request
    image = picture.seed - request.seed
    target = asset_id(submission.job_id, image)
    drawn = (await assets.stat(picture.asset_id)).metadata
    own = {"job_id": submission.job_id, "image": image, "user": submission.user}
    await assets.link(picture.asset_id, target, drawn | own)
    return replace(picture, asset_id=target)
