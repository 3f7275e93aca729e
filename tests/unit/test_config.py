"""Serve config files: what is refused, on which line, with which advice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.config import check, deployments_of, read, render
from serve.errors import ConfigError
from serve.settings import Settings

SHIPPED = sorted(Path("config").glob("serve*.yaml"))
TEXT = Path("config/serve.yaml").read_text()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "serve.yaml"


def problem(config: Path, old: str, new: str) -> str:
    """The one problem of config/serve.yaml with one change, less the folder."""
    assert TEXT.count(old) >= 1
    config.write_text(TEXT.replace(old, new, 1))
    (found,) = check(config)
    return str(found).removeprefix(f"{config.parent}/")


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(TEXT.splitlines(), 1) if text in line)


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_files_are_right(path: Path):
    assert check(path) == []
    application = yaml.safe_load(path.read_text())["applications"][0]
    names = deployments_of(application["args"].get("models", {}))
    assert {entry["name"] for entry in application["deployments"]} == set(names)


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("http_options:", "http_option:", "http_option", "unknown key; did you mean 'http_options'?"),
        ("  port: 8000", "  prot: 8000", "http_options.prot", "unknown key; did you mean 'port'?"),
        ("  log_level: W", "  loglevel: W", "logging_config.loglevel", "unknown key; did you mean 'log_level'?"),
        ("route_prefix:", "prefix:", "applications[0].prefix", "unknown key; did you mean 'route_prefix'?"),
        ("      model: e", "      modle: e", "applications[0].args.modle", "unknown key; did you mean 'model'?"),
        ("      threads: 1", "      xyzzy: 1", "applications[0].args.xyzzy", "unknown key"),
        (
            "      threads: 1",
            "      queue: {max_dept: 5}",
            "applications[0].args.queue.max_dept",
            "unknown key; did you mean 'max_depth'?",
        ),
        (
            "      threads: 1",
            "      access: {users: {ada: {image_per_day: 5}}}",
            "applications[0].args.access.users.ada.image_per_day",
            "unknown key; did you mean 'images_per_day'?",
        ),
        (
            "      threads: 1",
            "      access: {ldap: {url: 'ldaps://x', user_nd: 'uid={user}'}}",
            "applications[0].args.access.ldap.user_nd",
            "unknown key; did you mean 'user_dn'?",
        ),
        (
            "num_replicas: 1",
            "num_replica: 1",
            "applications[0].deployments[0].num_replica",
            "unknown key; did you mean 'num_replicas'?",
        ),
        (
            "{num_cpus: 0.1}",
            "{num_cpu: 0.1}",
            "applications[0].deployments[0].ray_actor_options.num_cpu",
            "unknown key; did you mean 'num_cpus'?",
        ),
        (
            "{min_replicas: 1, max_replicas: 1}",
            "{min_replicas: 1, max_replica: 1}",
            "applications[0].deployments[1].autoscaling_config.max_replica",
            "unknown key; did you mean 'max_replicas'?",
        ),
    ],
)
def test_unknown_key(config: Path, old: str, new: str, key: str, message: str):
    assert problem(config, old, new) == f"serve.yaml:{line_of(old)}: {key}: {message}"


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("  port: 8000", "  port: eight", "http_options.port", "Input should be a valid integer"),
        (
            "max_ongoing_requests: 1000",
            "max_ongoing_requests: 0",
            "deployments[0].max_ongoing_requests",
            "greater than 0",
        ),
        ("device: auto", "device: gpu", "args.device", "Input should be 'auto', 'cpu' or 'cuda'"),
        ("threads: 1", "served_model_name: denoiser", "args.served_model_name", "means something else under /v2"),
        ("threads: 1", "served_model_name: stats", "args.served_model_name", "means something else under /v2"),
        ("threads: 1", "default_size_px: 100", "args.default_size_px", "multiple of 16"),
        ("threads: 1", "default_size_px: 512", "args", "default_size_px 512 is over max_side_px 256"),
        ("threads: 1", "quality_steps: {best: 9}", "args.quality_steps.best", "should be 'low'"),
        ("threads: 1", "scheduler: {policy: lifo}", "args.scheduler.policy", "'edf', 'fifo', 'static' or"),
        (
            "{min_replicas: 1, max_replicas: 1}",
            "{min_replicas: 3, max_replicas: 1}",
            "deployments[1].autoscaling_config",
            "max_replicas",
        ),
        ("name: Denoiser", "name: Denoisr", "deployments[3].name", "no deployment 'Denoisr'; did you mean 'Denoiser'?"),
        ("name: Gateway", "name: Proxy", "deployments[0].name", "they are Gateway, Dispatcher, TextEncoder, Denoiser"),
        ("deployments.app:build", "app:build", "import_path", "it must be deployments.app:build"),
    ],
)
def test_bad_value(config: Path, old: str, new: str, key: str, message: str):
    found = problem(config, old, new)
    assert found.startswith(f"serve.yaml:{line_of(old)}: ") or key == "args"
    assert f"{key}: " in found
    assert message in found


def test_every_problem_in_the_order_of_the_lines(config: Path):
    config.write_text(TEXT.replace("  port:", "  prot:").replace("device:", "devise:").replace("route_", "rout_"))
    assert [found.key for found in check(config)] == [
        "http_options.prot",
        "applications[0].rout_prefix",
        "applications[0].args.devise",
    ]


def test_key_given_twice(config: Path):
    assert problem(config, "device: auto", "model: embedded") == (
        f"serve.yaml:{line_of('device: auto')}: applications[0].args.model: "
        "is given twice; only the last one would count; remove one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "serve.yaml:1: is not YAML: expected ',' or ']'"),
        ("", "serve.yaml:1: is empty"),
        ("- 1", "serve.yaml:1: is not a mapping"),
        ("applications: []", "serve.yaml:1: applications: holds the one application"),
        ("applications: [1]", "serve.yaml:1: applications[0]: Input should be a valid dictionary"),
        ("applications: [{args: {}}]", "applications[0].import_path: Field required"),
        ("applications: [{import_path: 'deployments.app:build', args: 3}]", "args: Input should be a valid dictionary"),
    ],
)
def test_no_config_at_all(config: Path, text: str, message: str):
    config.write_text(text)
    assert message in "\n".join(map(str, check(config)))


def test_missing_file(config: Path):
    assert "cannot be read: No such file or directory" in str(check(config)[0])


def test_read_gives_what_is_served():
    served = read(Path("config/serve.yaml"))
    blueprint = {"blueprint": "serve/engine/tiny/adapters/blueprint.safetensors"}
    assert (served.host, served.port) == ("127.0.0.1", 8000)
    lines = {"lines": {"weights": "serve/engine/tiny/controlnets/lines", "scale": 1}}
    assert served.settings == Settings.model_validate({"adapters": blueprint, "controlnets": lines})


@pytest.mark.parametrize("shipped", sorted(Path("config").glob("serve*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_right(shipped: Path):
    assert check(shipped) == []


def test_read_refuses_with_all_problems(config: Path):
    config.write_text(TEXT.replace("  port:", "  prot:").replace("device:", "devise:"))
    with pytest.raises(ConfigError, match=r"prot.*\n.*devise"):
        read(config)


def test_render_overrides_port_and_data(config: Path, tmp_path: Path):
    config.write_text(render(Path("config/serve.yaml"), port=8123, data=tmp_path / "pictures"))
    served = read(config)
    assert (served.port, served.settings.data) == (8123, tmp_path / "pictures")


def test_render_keeps_the_rest_and_makes_data_absolute():
    rendered = yaml.safe_load(render(Path("config/serve.yaml")))
    original = yaml.safe_load(TEXT)
    assert rendered["applications"][0]["args"].pop("data") == str(Path("data").absolute())
    assert rendered["applications"][0]["args"].pop("presets") == str(Path("config/presets.yaml").absolute())
    for name in ("data", "presets"):
        original["applications"][0]["args"].pop(name)
    assert rendered == original


def test_command(config: Path):
    config.write_text(TEXT.replace("  port:", "  prot:"))
    command = [sys.executable, "-m", "deployments.config", "check", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout) == [
        {
            "file": str(config),
            "line": line_of("  port:"),
            "key": "http_options.prot",
            "message": "unknown key",
            "hint": "did you mean 'port'?",
        }
    ]


@pytest.mark.parametrize("path", sorted(Path("config").glob("serve*.yaml")), ids=str)
def test_shipped_files_have_no_problem(path: Path):
    assert check(path) == []


def test_the_presets_are_checked_with_the_file(config: Path, tmp_path: Path):
    presets = tmp_path / "presets.yaml"
    presets.write_text("presets:\n  - {nam: a}\n")
    found = problem_in(config, f"presets: {presets}")
    assert found[0] == f"{presets}:2: presets[0].nam: unknown key; did you mean 'name'?"
    presets.unlink()
    assert "cannot be read: No such file or directory; write it" in problem_in(config, f"presets: {presets}")[0]
    assert problem_in(config, "presets: null") == []


def test_presets_of_the_gateways_user_config_are_checked_in_their_place(config: Path):
    given = "user_config: {presets: {presets: [{name: a, title: {en: A, zh: A}, size: 100x100}]}}"
    (found,) = problem_in(config, "presets: no/such/file", given)
    line = line_of("num_replicas: 1")
    assert found == (
        f"{config}:{line}: applications[0].deployments[0].user_config.presets.presets[0].size: "
        "'100x100': both sides must be multiples of 16"
    )
    (found,) = problem_in(config, "presets: null", "user_config: {preset: {}}")
    assert found.endswith("user_config.preset: unknown key; did you mean 'presets'?")


def problem_in(config: Path, presets: str, more: str = "") -> list[str]:
    text = TEXT.replace("presets: config/presets.yaml", presets)
    config.write_text(
        text.replace("num_replicas: 1", f"{more}\n        num_replicas: 1" if more else "num_replicas: 1", 1)
    )
    return [str(problem) for problem in check(config)]
