"""`zimage doctor`: each thing that would stop a start is a fail with the command that fixes it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.doctor import Finding, Plan, examine_machine, render
from serve.settings import EMBEDDED_FOLDER, Settings
from tests import control_files
from tests.ports import free_port


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def findings(gpus: float = 0, port: int | None = None, **settings: object) -> dict[str, Finding]:
    plan = Plan("127.0.0.1", port or free_port(), gpus, Settings.model_validate(settings))
    return {finding.check: finding for finding in examine_machine(plan)}


def doctor(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.cli", "doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_this_machine_is_fit(tmp_path: Path):
    found = findings(data=tmp_path)
    assert [
        finding for finding in found.values() if finding.status != "ok" and finding.check not in ("gpu", "shm")
    ] == []
    assert found["packages"].detail.endswith("ray 2.60.0")


def test_adapters_and_controlnets_of_every_model_are_looked_at(tmp_path: Path):
    lines = str(control_files.write(tmp_path / "lines", "plain"))
    broken = {"weights": lines, "masks": True}
    found = findings(data=tmp_path, controlnets={"lines": lines})
    assert found["controlnets"] == Finding("controlnets", "ok", "lines: whole, and for this model")
    told = findings(data=tmp_path, models={"other": {"model": "embedded", "controlnets": {"bad": broken}}})
    assert told["controlnets"].status == "fail"
    assert told["controlnets"].detail.startswith("controlnet 'bad': ")


def test_command_within_five_seconds(tmp_path: Path):
    config = tmp_path / "serve.yaml"
    config.write_text(Path("config/serve.yaml").read_text().replace("port: 8000", f"port: {free_port()}"))
    began = time.monotonic()
    done = doctor("--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 15  # five on an idle machine
    assert done.stdout.splitlines()[0] == f"ok    config     {config}"


def test_command_json_and_exit_code(tmp_path: Path):
    config = tmp_path / "serve.yaml"
    config.write_text(Path("config/serve.yaml").read_text().replace("model: embedded", "modle: embedded"))
    done = doctor("--config", str(config), "--json")
    assert done.returncode == 1
    found = {entry["check"]: entry for entry in json.loads(done.stdout)}
    line = config.read_text().splitlines().index(next(x for x in config.read_text().splitlines() if "modle" in x)) + 1
    assert found["config"] == {
        "check": "config",
        "status": "fail",
        "detail": f"{config}:{line}: applications[0].args.modle: unknown key (did you mean 'model'?)",
        "fix": f"correct line {line} of {config}",
    }
    assert found["weights"]["status"] == "ok"


def test_does_not_import_torch_or_ray():
    code = "import sys, serve.doctor; sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_fix_is_on_its_own_line():
    told = render([Finding("port", "fail", "taken", "free it"), Finding("data", "ok", "there")], as_json=False)
    assert [line.strip() for line in told.splitlines()][1] == "fix: free it"


def test_config_that_cannot_be_parsed_is_replaced_by_defaults(tmp_path: Path):
    (tmp_path / "serve.yaml").write_text("applications: [{args: {threads: many}}]")
    assert Plan.read(tmp_path / "serve.yaml").settings == Plan.read(tmp_path / "missing.yaml").settings == Settings()


def test_plan_reads_what_the_file_asks_for():
    plan = Plan.read(Path("config/serve.gpu.yaml"))
    assert (plan.host, plan.port, plan.settings.device) == ("127.0.0.1", 8000, "cuda")
    assert plan.gpus == pytest.approx(1.0)


def test_weights_not_downloaded():
    found = findings(model="acme/fox")
    assert (found["weights"].status, found["weights"].fix) == ("fail", "zimage download acme/fox")
    assert "tokenizer" not in found


def test_weights_damaged(tmp_path: Path):
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    os.truncate(model / "text_encoder/model.safetensors", 1000)
    assert "is truncated" in findings(model=str(model))["weights"].detail


def test_tokenizer_damaged(tmp_path: Path):
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    (model / "tokenizer/tokenizer.json").write_text("{}")
    assert findings(model=str(model))["tokenizer"].status == "fail"


def test_port_taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = findings(port=port)["port"]
    assert found.status == "fail"
    assert found.detail == f"port {port} on 127.0.0.1 is not free: Address already in use"
    assert "make serve PORT=8123" in str(found.fix)


def test_data_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "data").write_text("")
    found = findings(data=tmp_path / "data")["data"]
    assert (found.status, found.fix) == ("fail", "make serve DATA=/some/other/dir")


def test_no_room_for_data():
    assert findings(data="/proc/data")["data"].status == "fail"


def test_no_gpu_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert findings(device="cuda")["gpu"].detail == "device is cuda, and nvidia-smi shows none"
    assert findings(gpus=1)["gpu"].detail == "the deployments ask for 1 GPUs, and nvidia-smi shows none"
    assert findings()["gpu"].status == "ok"


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")


@pytest.mark.parametrize(("device", "status"), [("cuda", "fail"), ("auto", "warn"), ("cpu", "ok")])
def test_gpu_with_a_cpu_build_of_torch(one_gpu: None, monkeypatch: pytest.MonkeyPatch, device: str, status: str):
    monkeypatch.setattr("serve.doctor._torch_cuda", lambda: None)
    assert findings(device=device)["gpu"].status == status


def test_more_gpus_asked_for_than_there_are(one_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.doctor._torch_cuda", lambda: "12.8")
    found = findings(device="cuda", gpus=2)
    assert found["gpu"].detail == "NVIDIA H200, 143771 MiB; torch for CUDA 12.8"
    assert found["gpus"].detail == "2 asked for, 1 there"


def test_stale_ray(tmp_path: Path):
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(f"127.0.0.1:{free_port()}")
    found = findings()["ray"]
    assert (found.status, found.fix) == ("warn", f"rm {note}")


def test_foreign_ray(tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        found = findings()["ray"]
    assert found.status == "warn"
    assert "plain `serve run` would join it" in found.detail


def test_ray_address_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert "ray_address" not in findings()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert findings()["ray_address"].fix == "unset RAY_ADDRESS"


def test_ray_auth_mode(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "off")
    assert findings()["ray_auth"].status == "fail"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert findings()["ray_auth"].status == "ok"


def test_old_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nversion = "1"\nrequires-python = ">=3.13"\ndependencies = ["typer>=99", "no-such-package", "rich"]'
    )
    monkeypatch.setattr("serve.doctor.ROOT", tmp_path)
    found = findings()
    assert found["packages"].status == found["python"].status == "fail"
    assert "but >=99 is needed; no-such-package is missing" in found["packages"].detail
    assert "pip install -c constraints.txt -e ." in str(found["packages"].fix)


def test_presets(tmp_path: Path):
    assert findings()["presets"].detail.startswith("config/presets.yaml: 4 presets")
    assert findings(presets=None)["presets"].detail == "none"
    bad = tmp_path / "presets.yaml"
    bad.write_text("presets:\n  - {nam: a}\n")
    found = findings(presets=bad)["presets"]
    assert (found.status, found.fix) == ("fail", "did you mean 'name'?")
    assert f"{bad}:2: presets[0].nam: unknown key" in found.detail
