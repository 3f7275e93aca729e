"""What draws the pictures: engines of one identity draw the same ones, and may answer for each other from the cache."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch

from serve.fingerprint import fingerprint

LIBRARIES = ("torch", "diffusers", "transformers", "pillow", "numpy")


def identity_of(folder: Path, placement: str) -> str:
    """Of weights, this package's own code, libraries, and `placement`: the device's name and precision; hexadecimal."""
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]
    parts = (*libraries, f"cuda {torch.version.cuda}", placement, fingerprint(folder), _code())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _code() -> str:
    """Any change of it may change a byte, and nobody need remember to say so."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
