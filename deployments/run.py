"""Starts a config file on a Ray of its own: `make serve`. Never joins another Ray, and leaves no process behind."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import http.client
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from deployments.leftovers import end, watch
from deployments.vitals import lost
from serve.access_settings import is_loopback
from serve.assets.open import check_assets
from serve.errors import ConfigError, ZImageError
from serve.jobs.way_in import check_way_in, opened_keys
from serve.port import check_port
from serve.settings import Settings
from serve.tracing.open import check_tracing
from serve.weights import bytes_of, resolve, verify

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
OBJECT_STORE_BYTES = 200 << 20
POLL_S = 0.25
STOP_S = 8.0
HAND_BACK_S = 4.0
FOLDER = "/tmp/zimage-{port}"  # short: the paths of Ray's sockets end at 107 bytes

STOPS = (signal.SIGINT, signal.SIGTERM)

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
    parser.add_argument("--ray-metrics-port", type=int, help="where Ray's own metrics are scraped; default: any free")
    options = parser.parse_args()
    set_environment()
    for signum in STOPS:
        signal.signal(signum, _interrupt)
    try:
        run(options.config, options.port, options.data, options.ray_metrics_port)
    except ZImageError as error:
        print(f"error: {error.message}" + (f"\nfix: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(config: Path, port: int | None, data: Path | None, ray_metrics_port: int | None = None) -> None:
    """Serves until SIGINT or SIGTERM. Raises ConfigError for whatever would not have worked."""
    began = time.monotonic()
    start = prepare(config, port, data)
    with _own_folder(start.port) as folder:
        check_port(start.host, start.port)
        rendered = folder / "serve.yaml"
        rendered.write_text(start.rendered)
        print(f"{start.summary}\nstarting: processes", flush=True)
        try:
            with _ray(ray_metrics_port):
                _deploy(rendered)
                _wait_until_ready(start)
                print(_welcome(start, time.monotonic() - began), flush=True)
                _wait_until_stopped()
        except KeyboardInterrupt:
            print("stopped", flush=True)


def prepare(config: Path, port: int | None, data: Path | None) -> Start:
    from deployments.config import read, render  # noqa: PLC0415 - imports Ray, which reads the environment

    served = read(config)
    folders = {model: resolve(served.settings.of(model)) for model in served.settings.served}
    for folder in folders.values():
        verify(folder)
    where = (data or served.settings.data).expanduser()
    check_writable(where)
    check_assets(served.settings)
    check_tracing(served.settings)
    asyncio.run(_check_way_in(served.settings.model_copy(update={"data": where}), served.host))
    models = ((served.settings.of(model).model, bytes_of(folder)) for model, folder in folders.items())
    weights = ", ".join(f"model {model} ({size / 1e6:,.1f} MB)" for model, size in models)
    summary = f"{config}: {weights}, data in {where.absolute()}"
    return Start(served.host, port or served.port, render(config, port, data), summary)


async def _check_way_in(settings: Settings, host: str) -> None:
    if not is_loopback(host) and settings.access.mode != "open":
        async with opened_keys(settings) as keys:
            await check_way_in(settings, host, keys)


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"the data folder {folder.absolute()} cannot be written: {error.strerror}",
            param="data",
            hint="take another: make serve DATA=/some/dir",
        ) from None


def set_environment() -> None:
    """For this process before it imports Ray, and for all that Ray starts."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "RAY_AUTH_MODE": "token",  # Ray's own ports are open on all interfaces, and run what they are sent
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",  # lines of two processes that look alike are two events
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.03",  # of 30 s: the backlog, once a second
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # of its default, an idle controller takes a tenth of a core
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",  # of its default, a busy machine warns without end
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy.configure",  # half-open connections end
        "PYTHONPATH": os.pathsep.join(path),
    }


@contextmanager
def _own_folder(port: int) -> Iterator[Path]:
    """For Ray's sockets and logs, free of earlier runs."""
    folder = Path(FOLDER.format(port=port))
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
        if left := end(folder):
            raise ConfigError(f"processes of an earlier run cannot be ended: {left}", hint="make serve PORT=8123")
        shutil.rmtree(folder / "ray", ignore_errors=True)
        token = folder / "ray_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        watch(folder)
        os.environ |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_TOKEN_PATH": str(token)}
        yield folder


@contextmanager
def _ray(metrics_port: int | None) -> Iterator[None]:
    """A Ray of its own, which ends with this process however that ends."""
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # Ray's own handler would print its stack and abort
    os.register_at_fork(after_in_child=_unblock_stops)
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="WARNING",
        _metrics_export_port=metrics_port,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _unblock_stops()
        yield
    finally:
        print("stopping", flush=True)
        if not _quietly(lambda: _within(HAND_BACK_S, _hand_back) and _within(STOP_S, serve.shutdown)):
            print("stopped", flush=True)  # Ray would abort this process under a call that still runs
            os._exit(0)  # `watch` ends what is left
        _quietly(ray.shutdown)


def _wait_until_stopped() -> None:
    """Or until Ray's own processes die, which nothing brings back: this one ends, with exit code 1."""
    while not _stop.wait(POLL_S):
        if dead := lost():
            print(f"error: {dead} has died, and the service with it\nfix: start it again, jobs go on", file=sys.stderr)
            _quietly(lambda: _within(HAND_BACK_S, _hand_back))
            os._exit(1)  # Ray would try for a minute to reach it; `watch` ends what is left


def _unblock_stops() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _quietly(work: Callable[[], T]) -> T:
    """Ray reports its own end as failures."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return work()


def _within(seconds: float, work: Callable[[], None]) -> bool:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _hand_back() -> None:
    """Jobs whose replicas are about to be stopped go on at the next start, and are not blamed for the end of this."""
    from ray import serve  # noqa: PLC0415
    from ray.exceptions import RayError  # noqa: PLC0415

    application = serve.status().applications.get("zimage")
    dispatcher = application.deployments.get("Dispatcher") if application else None
    if dispatcher is not None and dispatcher.replica_states.get("RUNNING"):
        with suppress(RayError, TimeoutError):  # it is not there any more, or does not answer
            serve.get_deployment_handle("Dispatcher", "zimage").hand_back.remote().result(timeout_s=HAND_BACK_S - 1)


def _interrupt(*_: object) -> None:
    _stop.set()
    raise KeyboardInterrupt


def _deploy(rendered: Path) -> None:
    """What `serve run` does with a config file, but with a quiet controller and proxy."""
    from ray import serve  # noqa: PLC0415
    from ray.serve.context import _get_global_client  # noqa: PLC0415 - a file is deployed by no public function
    from ray.serve.schema import LoggingConfig, ServeDeploySchema  # noqa: PLC0415

    config = ServeDeploySchema.model_validate(yaml.safe_load(rendered.read_text()))
    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
    )
    _get_global_client().deploy_apps(config)


def _wait_until_ready(start: Start) -> None:
    """Tells the phases on the way. Raises ConfigError when the application cannot be deployed."""
    from ray import serve  # noqa: PLC0415

    said = ""
    while (phase := readiness(start)) is not None:
        if phase not in ("", "starting", said):
            print(f"starting: {phase}", flush=True)
            said = phase
        application = serve.status().applications.get("zimage")
        if application and application.status == "DEPLOY_FAILED":
            raise ConfigError(
                _cause(application), hint=f"all logs are in {FOLDER.format(port=start.port)}/ray/session_latest/logs"
            )
        time.sleep(POLL_S)


def _cause(application: ApplicationStatusOverview) -> str:
    """The last line of each traceback that Ray Serve keeps of a failed start."""
    failed = {name: found.message for name, found in application.deployments.items() if "Traceback" in found.message}
    if not failed:
        return f"the application cannot be built: {_last_line(application.message)}"
    return "\n".join(f"{name} cannot be started: {_last_line(message)}" for name, message in failed.items())


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def readiness(start: Start) -> str | None:
    """The phase that /readyz tells; empty while nobody answers there; None when the service is ready."""
    connection = http.client.HTTPConnection(start.url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read()
    except OSError:
        return ""
    finally:
        connection.close()
    if response.status == http.client.OK:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    phase, progress = answer.get("phase", ""), answer.get("progress", 0)
    return f"{phase} {progress:.0%}" if progress else phase


def _welcome(start: Start, seconds: float) -> str:
    return f"""ready after {seconds:.0f} s: {start.url}   (API: {start.url}/docs, stop: Ctrl-C)
  curl -s {start.url}/v1/images/generations -H 'Accept: image/png' -o apple.png \\
    -d '{{"prompt": "a red apple on a yellow background"}}'"""


if __name__ == "__main__":
    main()
