"""`serve deploy` to a server of `deployments.run`: its own file, changed, sent to the Ray that it has started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.server import ROOT, Server

DEPLOY = """
import logging, sys, ray, yaml
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init(address=sys.argv[1], namespace="serve", logging_level="ERROR", log_to_driver=False)
_get_global_client().deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(open(sys.argv[2]))))
"""

STATUS = """
import json, sys, ray
from ray import serve
ray.init(address=sys.argv[1], namespace="serve", logging_level="ERROR", log_to_driver=False)
application = serve.status().applications["zimage"]
print(json.dumps({"status": application.status, "message": application.message}))
"""


def deploy(server: Server, change: Callable[[dict[str, Any]], None]) -> None:
    """Returns when Ray Serve has taken the file, which `change` has changed; all later changes build on it."""
    file = home(server) / "serve.yaml"
    config = yaml.safe_load(file.read_text())
    change(config["applications"][0])
    file.write_text(yaml.safe_dump(config))
    run(server, DEPLOY, str(file))


def run(server: Server, script: str, *arguments: str) -> str:
    """In a driver of its own on the server's Ray."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home(server) / "ray_token")}
    environment |= {"RAY_TMPDIR": str(home(server)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, address(server), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def home(server: Server) -> Path:
    return Path(f"/tmp/zimage-{server.url.rpartition(':')[2]}")


def address(server: Server) -> str:
    """Of the Ray that the server has started."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        if found := re.search(r"--gcs-address=(\S+)", " ".join(process.cmdline())):
            return found[1]
    raise AssertionError("no process of the server names its Ray")


def of(application: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a deployment."""
    found: dict[str, Any] = next(entry for entry in application["deployments"] if entry["name"] == name)
    return found
