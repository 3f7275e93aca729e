"""What config files may say about numbers of replicas."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.config import check, read
from serve.errors import ConfigError

TEXT = Path("config/serve.cluster.yaml").read_text()
TEXT_ENCODER, DENOISER = "max_replicas: 2, upscale_delay_s: 0", "max_replicas: 8, upscale_delay_s: 0"


def problems(tmp_path: Path, *changes: tuple[str, str]) -> list[str]:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    config = tmp_path / "serve.yaml"
    config.write_text(text)
    return [f"{problem.key.removeprefix('applications[0].')}: {problem.message}" for problem in check(config)]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            "deployments.autoscaling:policy",
            "ray.serve:x",
            ["autoscaling_policy.policy_function: is 'ray.serve:x'"],
        ),
        (DENOISER, "max_replicas: 8", ["upscale_delay_s would be added to the policy's own"]),
        (DENOISER, "max_replicas: 8, upscale_delay_s: 5", ["upscale_delay_s would be added to the policy's own"]),
        (TEXT_ENCODER, "min_replicas: 0, max_replicas: 2, upscale_delay_s: 0", ["is given twice"]),
        ("{min_replicas: 1, max_replicas: 1}", "{min_replicas: 1, max_replicas: 2}", ["there is one Dispatcher"]),
        ("autoscaling_config: {min_replicas: 1, max_replicas: 1}", "num_replicas: 2", ["num_replicas: there is one"]),
        ("autoscaling_config: {min_replicas: 1, max_replicas: 1}", "num_replicas: 1", ["hears nothing of it"]),
        ("min_replicas: 1, " + DENOISER, "min_replicas: 0, " + DENOISER, ["would never start"]),
    ],
)
def test_refused(old: str, new: str, found: list[str], tmp_path: Path) -> None:
    said = "\n".join(problems(tmp_path, (old, new)))
    assert all(message in said for message in found), said


def test_without_the_policy_ray_would_count_requests(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        ("    autoscaling_policy:", "    #"),
        ("      policy_function: deployments.autoscaling:policy", "      #"),
    )
    assert sum("needs the policy of this project" in line for line in said) == 2


def test_to_zero(tmp_path: Path) -> None:
    assert (
        problems(tmp_path, ("min_replicas: 1, " + DENOISER, "min_replicas: 0, initial_replicas: 1, " + DENOISER)) == []
    )


def test_the_cluster_needs_no_folder_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.nodes import bound

    assert bound(read(Path("config/serve.cluster.yaml")).settings) == [
        "the secret that signs links is made in a folder of one"
    ]
    monkeypatch.setenv("ZIMAGE_SECRET_KEY", "x" * 31)
    with pytest.raises(ConfigError, match="at least 32 characters"):
        read(Path("config/serve.cluster.yaml"))
    monkeypatch.setenv("ZIMAGE_SECRET_KEY", "x" * 32)
    assert bound(read(Path("config/serve.cluster.yaml")).settings) == []
