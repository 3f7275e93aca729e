"""`zimage doctor --deep` asks whether Ray starts here: it does, beside whatever else runs, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.deep import check_ray

pytestmark = pytest.mark.cluster


def test_a_ray_of_its_own_runs_a_task() -> None:
    before = set(Path("/tmp").glob("zp-*"))
    assert "a task ran in process" in check_ray()
    assert set(Path("/tmp").glob("zp-*")) - before == set()
