from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.server import Server
from tests.stores.conftest import postgresql

__all__ = ["postgresql", "server"]


@pytest.fixture(scope="package")  # an idle one would slow down what comes after
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("data"))
    yield server
    server.stop()
