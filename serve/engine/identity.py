"""What draws the pictures: engines of one identity draw the same ones, and may answer for each other from the cache."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch

from serve.fingerprint import fingerprint

PIXELS = 1  # raise it with every change of the engine, the decoder or the encoding of files that may change a byte


def identity_of(folder: Path, placement: str) -> str:
    """Of weights, code, libraries, and `placement`: the device's name and precision; hexadecimal."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "pillow")]
    parts = (f"pixels {PIXELS}", *libraries, f"cuda {torch.version.cuda}", placement, fingerprint(folder))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
