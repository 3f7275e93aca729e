"""What `make serve` refuses before it starts anything, and how it ends what a killed server left."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import worker

from deployments.leftovers import end, running
from deployments.run import check_writable, main, prepare
from deployments.vitals import lost
from serve.errors import ConfigError, WeightsError
from serve.port import check_port

SERVE = Path("config/serve.yaml")


def test_prepare(tmp_path: Path):
    start = prepare(SERVE, port=8123, data=tmp_path / "pictures")
    assert start.url == "http://127.0.0.1:8123"
    assert f"data in {tmp_path}/pictures" in start.summary
    assert f"data: {tmp_path}/pictures" in start.rendered


def test_unknown_key(tmp_path: Path):
    config = tmp_path / "serve.yaml"
    config.write_text(SERVE.read_text().replace("threads: 1", "thread: 1"))
    with pytest.raises(ConfigError, match="thread: unknown key; did you mean 'threads'"):
        prepare(config, None, None)


def test_missing_weights(tmp_path: Path):
    config = tmp_path / "serve.yaml"
    config.write_text(SERVE.read_text().replace("model: embedded", f"model: {tmp_path}/none"))
    with pytest.raises(WeightsError, match="there is no folder"):
        prepare(config, None, None)


def test_data_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        check_writable(tmp_path / "file")


def test_port_taken():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is not free: Address already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_command_says_error_and_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["run", "no/such.yaml"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: no/such.yaml:1: cannot be read: No such file or directory")


def test_leftovers_of_a_folder_are_ended_and_no_others(tmp_path: Path):
    ours, other = tmp_path / "ray/session_1/logs/gcs.out", tmp_path / "other/ray/session_1/logs/gcs.out"
    ours.parent.mkdir(parents=True)
    ours.write_text("")
    code = "import time; time.sleep(60)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(ours)]),
        subprocess.Popen([sys.executable, "-c", code, str(other)]),
        subprocess.Popen(["tail", "-f", str(ours)], stdout=subprocess.DEVNULL),
    ]
    try:
        wait_until(lambda: running(tmp_path) == [processes[0].pid])
        assert end(tmp_path) == []
        assert [process.poll() for process in processes] == [-9, None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_leftovers_that_took_a_title_are_known_by_their_log(tmp_path: Path):
    log = tmp_path / "ray/session_1/logs/worker.out"
    log.parent.mkdir(parents=True)
    with log.open("w") as output:
        process = subprocess.Popen(["ray::IDLE", "60"], executable="/bin/sleep", stdout=output)
    try:
        wait_until(lambda: running(tmp_path) == [process.pid])
    finally:
        process.kill()
        process.wait()


def test_watch_ends_what_its_server_left(tmp_path: Path):
    session = tmp_path / "ray/session_1"
    code = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from deployments.leftovers import watch\n"
        f"watch(Path({str(tmp_path)!r}))\n"
        f"left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {str(session)!r}])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    server = subprocess.run([sys.executable, "-c", code], check=False)
    assert server.returncode == -9
    wait_until(lambda: running(tmp_path) == [])


def wait_until(happened: Callable[[], bool]) -> None:
    """A process that was just started has no arguments yet."""
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("dead", "told"),
    [
        ([], None),
        (["log_monitor"], None),
        (["log_monitor", "raylet"], "Ray's node (raylet)"),
        (["gcs_server"], "Ray's control plane (gcs_server)"),
    ],
)
def test_only_what_ray_cannot_do_without_is_missed(dead: list[str], told: str | None, monkeypatch: pytest.MonkeyPatch):
    node = SimpleNamespace(dead_processes=lambda: [(name, object()) for name in dead])
    monkeypatch.setattr(worker, "_global_node", node)
    assert lost() == told
