"""Gets the pictures and names from npm into one small folder that can be carried to a machine without a network."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from training.data import vocabulary
from training.data.vocabulary import Vocabulary, picture_path

NOTICE = Path(__file__).parents[1] / "NOTICE.md"


class FetchFailed(RuntimeError):
    """npm or the registry is out of reach, or sent something else than was trained on."""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PICTURES = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
NAMES = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")


def fetch(folder: Path, packages: Path | None = None) -> Vocabulary:
    """Fills `folder` with objects.json, the pictures and the notice (4 MB), or finds that it is full already.

    Tarballs are looked for in `packages` and kept there.
    """
    if is_complete(folder):
        return vocabulary.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        cache = packages or Path(temporary)
        return _unpack(_tarball(NAMES, cache), _tarball(PICTURES, cache), folder)


def is_complete(folder: Path) -> bool:
    if not (folder / vocabulary.VOCABULARY_NAME).exists():
        return False
    return all(picture_path(folder, emoji.file).exists() for emoji in vocabulary.load(folder))


def _tarball(package: Package, cache: Path) -> Path:
    path = cache / package.tarball
    if not path.exists():
        _npm_pack(package, cache)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise FetchFailed(f"{path} has SHA-256 {found}, not {package.sha256}; delete it and fetch again")
    return path


def _npm_pack(package: Package, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    wanted = f"{package.name}@{package.version}"
    retry = ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=4000"]
    command = ["npm", "pack", wanted, "--pack-destination", str(cache), *retry]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise FetchFailed(f"npm is not installed; install it or put {package.tarball} into {cache}") from error
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(f"`npm pack {wanted}` took more than 300 s; is the registry reachable?") from error
    except subprocess.CalledProcessError as error:
        raise FetchFailed(f"`npm pack {wanted}` failed: {error.stderr.strip()[-300:]}") from error


def _unpack(names: Path, pictures: Path, folder: Path) -> Vocabulary:
    emojibase = json.loads(_read(names, "package/en/data.json")["data"])
    files = _read(pictures, "package/assets/")
    chosen = vocabulary.select(emojibase, files.keys())
    for emoji in chosen:
        path = picture_path(folder, emoji.file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[emoji.file])
    shutil.copy(NOTICE, folder)
    vocabulary.save(chosen, folder)
    return chosen


def _read(tarball: Path, prefix: str) -> dict[str, bytes]:
    """Stem -> content of the members under `prefix`, in one pass: a gzip cannot be read out of order."""
    with tarfile.open(tarball) as archive:
        files = ((member, archive.extractfile(member)) for member in archive if member.name.startswith(prefix))
        return {Path(member.name).stem: file.read() for member, file in files if file is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="keeps the two npm tarballs (22 MB)")
    arguments = parser.parse_args()
    try:
        found = fetch(arguments.to, arguments.packages)
    except FetchFailed as error:
        raise SystemExit(str(error)) from error
    print(f"{len(found)} objects in {arguments.to}")


if __name__ == "__main__":
    main()
