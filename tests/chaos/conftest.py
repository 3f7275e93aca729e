"""One service for most faults: two Denoisers, a short queue, and disks of its own where this machine mounts any.

Every fault is repeated CHAOS_ROUNDS times (1), each with dice of its own: CHAOS_SEED (7) and its number.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.chaos.faults import mounted
from tests.cluster.load import Undisturbed
from tests.cluster.server import ROOT, Server
from tests.stores.conftest import postgresql

__all__ = ["postgresql"]

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
MAX_DEPTH = 40
POISON = Path(__file__).parent / "poison"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round" in metafunc.fixturenames:
        metafunc.parametrize("round", range(ROUNDS), ids=lambda number: f"round{number}")


@pytest.fixture
def dice(round: int, request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{SEED} {round} {request.node.originalname}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


@dataclass(frozen=True, slots=True)
class Service:
    """`disks` says that data and pictures are on file systems of their own, which a test may fill."""

    server: Server
    data: Path
    disks: bool

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def pictures(self) -> Path:
        return self.data / "assets"


def configured(folder: Path, denoisers: int = 2, **args: object) -> Path:
    """The shipped configuration with these settings."""
    config = yaml.safe_load((ROOT / "config/serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"warmup_sizes_px": [64]} | args
    for deployment in application["deployments"]:
        if deployment["name"] == "Denoiser":
            deployment["num_replicas"] = denoisers
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="package")  # an idle one would slow down what comes after
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("chaos")
    with ExitStack() as stack:
        data = folder / "data"
        data.mkdir()
        disks = stack.enter_context(mounted(data, megabytes=300))
        (data / "assets").mkdir()
        disks = disks and stack.enter_context(mounted(data / "assets", megabytes=150))
        config = configured(folder, queue={"max_depth": MAX_DEPTH, "max_depth_per_user": MAX_DEPTH})
        server = Server.start(data, config, environment={"PYTHONPATH": f"{POISON}:{os.environ.get('PYTHONPATH', '')}"})
        stack.callback(server.stop)
        yield Service(server, data, disks)


@pytest.fixture
def disks(service: Service) -> Service:
    if not service.disks:
        pytest.skip("mounting a small disk takes root")
    return service
