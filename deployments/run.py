"""Starts a config file on a Ray of its own: `make serve`. Never joins another Ray, and leaves no process behind."""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from serve.errors import ConfigError, ZImageError
from serve.weights import bytes_of, resolve, verify

ROOT = Path(__file__).parents[1]
OBJECT_STORE_BYTES = 200 << 20
POLL_S = 0.25
LEFTOVERS_S = 15.0
STOP_S = 12.0

_stop = threading.Event()


@dataclass(frozen=True, slots=True)
class Start:
    """A checked config, ready to be started."""

    host: str
    port: int
    rendered: str
    summary: str

    @property
    def url(self) -> str:
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments.run", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--port", type=int, help="instead of http_options.port")
    parser.add_argument("--data", type=Path, help="instead of args.data")
    options = parser.parse_args()
    _set_environment()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        run(options.config, options.port, options.data)
    except ZImageError as error:
        print(f"error: {error.message}" + (f"\nfix: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(2)


def run(config: Path, port: int | None, data: Path | None) -> None:
    """Serves until SIGINT or SIGTERM. Raises ConfigError for whatever would not have worked."""
    began = time.monotonic()
    start = prepare(config, port, data)
    with _own_folder(start.port) as folder:
        check_port(start.host, start.port)
        rendered = folder / "serve.yaml"
        rendered.write_text(start.rendered)
        print(start.summary, flush=True)
        try:
            with _ray():
                _deploy(rendered)
                _wait_until_ready(start)
                print(_welcome(start, time.monotonic() - began), flush=True)
                _stop.wait()
        except KeyboardInterrupt:
            print("stopped", flush=True)


def prepare(config: Path, port: int | None, data: Path | None) -> Start:
    from deployments.config import read, render  # noqa: PLC0415 - imports Ray, which reads the environment

    served = read(config)
    folder = resolve(served.settings)
    verify(folder)
    where = data or served.settings.data
    summary = f"{config}: model {served.settings.model} ({bytes_of(folder) / 1e6:,.1f} MB), data in {where.absolute()}"
    return Start(served.host, port or served.port, render(config, port, data), summary)


def check_port(host: str, port: int) -> None:
    """Raises ConfigError when something listens there: two listeners would share the requests between them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} is not free: {error.strerror}",
                param="http_options.port",
                hint=f"stop what listens there (ss -ltnp 'sport = :{port}'), or take another: make serve PORT=8123",
            ) from None


def _set_environment() -> None:
    """For this process before it imports Ray, and for all that Ray starts."""
    os.environ.pop("RAY_ADDRESS", None)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }


@contextmanager
def _own_folder(port: int) -> Iterator[Path]:
    """/tmp/zimage-PORT for Ray's sockets and logs, free of earlier runs; short, as socket paths end at 107 bytes."""
    folder = Path("/tmp" if len(tempfile.gettempdir()) > 40 else tempfile.gettempdir(), f"zimage-{port}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to another user", hint="take another port: make serve PORT=8123")
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a server for port {port} is running already", hint="stop it, or: make serve PORT=8123"
            ) from None
        _wait_for_leftovers(folder)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        os.environ["RAY_TMPDIR"] = str(folder)
        yield folder


def _wait_for_leftovers(folder: Path) -> None:
    """Ray's processes end by themselves soon after the one that started them was killed."""
    deadline = time.monotonic() + LEFTOVERS_S
    while pids := processes_of(folder):
        if time.monotonic() > deadline:
            listed = " ".join(map(str, pids))
            raise ConfigError(f"processes of an earlier run are still there: {listed}", hint=f"kill {listed}")
        time.sleep(0.2)


def processes_of(folder: Path) -> list[int]:
    """Processes started with a path in `folder`, or whose output goes there."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _lives_in(entry, folder)]


def _lives_in(process: Path, folder: Path) -> bool:
    inside = f"{folder}/ray/session_"
    try:
        return inside.encode() in (process / "cmdline").read_bytes() or os.readlink(process / "fd/1").startswith(inside)
    except OSError:
        return False


@contextmanager
def _ray() -> Iterator[None]:
    """A Ray of its own, which ends with this process however that ends."""
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="WARNING",
    )
    signal.signal(signal.SIGTERM, _interrupt)  # again: Ray sets a handler of its own
    try:
        yield
    finally:
        print("stopping", flush=True)
        stopping = threading.Thread(target=serve.shutdown, daemon=True)
        stopping.start()
        stopping.join(STOP_S)
        ray.shutdown()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _stop.set()
    raise KeyboardInterrupt


def _deploy(rendered: Path) -> None:
    """What `serve run` does with a config file, on the Ray of this process."""
    from ray.serve.scripts import cli  # noqa: PLC0415

    try:
        cli.main(["run", "--non-blocking", str(rendered)], standalone_mode=False)
    except SystemExit:  # its answer to every failure, which it has printed, and to an interrupt
        if _stop.is_set():
            raise KeyboardInterrupt from None
        raise ConfigError("Ray Serve did not take the config, for the reason above") from None


def _wait_until_ready(start: Start) -> None:
    """Tells the phases on the way. Raises ConfigError when the application cannot be deployed."""
    from ray import serve  # noqa: PLC0415

    said = ""
    while (phase := readiness(start)) is not None:
        if phase != said:
            print(f"starting: {phase}", flush=True)
            said = phase
        application = serve.status().applications.get("zimage")
        if application and application.status == "DEPLOY_FAILED":
            raise ConfigError(f"the application could not be deployed: {application.message}")
        time.sleep(POLL_S)


def readiness(start: Start) -> str | None:
    """The phase that /readyz tells; None when the service is ready."""
    connection = http.client.HTTPConnection(start.url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read()
    except OSError:
        return "processes"
    finally:
        connection.close()
    if response.status == http.client.OK:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return "application"
    phase, fraction = answer.get("phase", "application"), answer.get("fraction", 0)
    return f"{phase} {fraction:.0%}" if fraction else phase


def _welcome(start: Start, seconds: float) -> str:
    return f"""ready after {seconds:.0f} s: {start.url}   (API: {start.url}/docs, stop: Ctrl-C)
  curl -s {start.url}/v1/images/generations -H 'Accept: image/png' -o apple.png \\
    -d '{{"prompt": "a red apple on a yellow background"}}'"""


if __name__ == "__main__":
    main()
