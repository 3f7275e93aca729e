"""The product as its user starts it, in processes of its own, and what a test may do to them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 150.0


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @classmethod
    def start(
        cls,
        data: Path,
        config: str | Path = "config/serve.yaml",
        *options: str,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Server:
        port, log = free_port(), data / "server.log"
        where = ["--port", str(port), "--data", str(data)]
        command = [sys.executable, "-m", "deployments.run", str(config), *where, *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, env=os.environ | environment
            )
        server = cls(process, f"http://127.0.0.1:{port}", log)
        try:
            server.wait_until(server.ready, START_S, "the server is ready")
        except AssertionError:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the server has ended:\n{self.log.read_text()[-4000:]}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def state(self) -> dict[str, object]:
        state: dict[str, object] = httpx.get(f"{self.url}/readyz", timeout=20).json()
        return state

    def replica(self, deployment: str) -> psutil.Process:
        """The live process of a deployment's only replica."""
        (process,) = self.replicas(deployment)
        return process

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The live processes of a deployment."""
        return self.processes(f"ray::ServeReplica:zimage:{deployment}")

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Live ones that this server has started, whose command begins so."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and "".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    @staticmethod
    def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.1)
