"""Which weights these are, whatever their folder is called: read in moments, also for tens of gigabytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from serve.architecture import CLASSES

WHOLE_BYTES = 16 << 20  # smaller files are read whole
SAMPLE_BYTES = 4096  # from the middle of every tensor of larger ones


def fingerprint(folder: Path) -> str:
    """Equal for equal weights, tokenizers and configs; hexadecimal.

    Of a large safetensors file it reads the header and a piece of every tensor: training, merging or converting
    changes those, too.
    """
    digest = hashlib.sha256()
    for part in sorted(CLASSES):
        for path in sorted(file for file in (folder / part).rglob("*") if file.is_file()):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".safetensors" and path.stat().st_size > WHOLE_BYTES:
                _sample(path, digest)
            else:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _sample(path: Path, digest: hashlib._Hash) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest.update(header)
        tensors = (entry for name, entry in json.loads(header).items() if name != "__metadata__")
        for begin, end in sorted(entry["data_offsets"] for entry in tensors):
            file.seek(8 + length + (begin + end) // 2)
            digest.update(file.read(min(SAMPLE_BYTES, end - (begin + end) // 2)))
