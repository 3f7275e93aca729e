"""Debian's Prometheus over one service and its Ray, configured as ops/prometheus.yml says."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.server import ROOT, Server
from tests.ports import free_port

EVERY = "1s"
PROGRAM = shutil.which("prometheus")


@dataclass(frozen=True, slots=True)
class Prometheus:
    process: subprocess.Popen[bytes]
    url: str
    began: float

    @classmethod
    def start(cls, folder: Path, service: str, ray: str) -> Prometheus:
        """`service` and `ray` are the addresses that are scraped, every second instead of every quarter minute."""
        config = yaml.safe_load((ROOT / "ops" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
        config["rule_files"] = [str(ROOT / "ops" / "alerts.yml")]
        targets = {"zimage": service, "ray": ray}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        assert PROGRAM is not None
        options = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
        with (folder / "log").open("wb") as log:
            command = [PROGRAM, f"--config.file={folder / 'prometheus.yml'}", *options]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        prometheus = cls(process, f"http://{address}", time.time())
        Server.wait_until(prometheus.ready, 30, "Prometheus is ready")
        return prometheus

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def ready(self) -> bool:
        assert self.process.poll() is None, "Prometheus has ended"
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def now(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises AssertionError for one that does not parse."""
        return self._series("query", {"query": query})

    def since_its_start(self, query: str) -> list[dict[str, Any]]:
        """Those that a panel shows."""
        return self._series("query_range", {"query": query, "start": self.began, "end": time.time(), "step": 1})

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _series(self, path: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30).json()
        assert answer["status"] == "success", (params["query"], answer)
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series
