"""Locust users of the service; how to run it: loadtest/README.md. Exits with 3 when an accepted job was lost.

python -m locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --users 20 --run-time 2m
"""

from __future__ import annotations

import secrets
import time
from argparse import ArgumentParser
from typing import Any

import requests
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner

from loadtest.ledger import ENDED
from loadtest.users import BatchScript, Canceller, Designer, GalleryBrowser, MeetingGoer
from loadtest.visitor import ledger

__all__ = ["BatchScript", "Canceller", "Designer", "GalleryBrowser", "MeetingGoer"]

LOST, NO_SERVICE = 3, 4  # exit codes


@events.init_command_line_parser.add_listener
def options(parser: ArgumentParser) -> None:
    seed = secrets.randbelow(10**6)
    parser.add_argument("--seed", type=int, default=seed, help="of what is asked for")
    parser.add_argument("--pace", type=float, default=1.0, help="thinking takes so many times as long as people's")
    parser.add_argument("--meeting-s", type=float, default=60.0, help="a meeting ends every so many seconds")
    parser.add_argument("--settle-s", type=float, default=120.0, help="after the end, accepted jobs may take so long")
    parser.add_argument("--api-keys", env_var="ZIMAGE_API_KEYS", is_secret=True, help="by turns, separated by commas")


@events.test_start.add_listener
def is_there(environment: Environment, **_: Any) -> None:
    try:
        answer = requests.get(f"{environment.host}/readyz", timeout=10)
        problem = "" if answer.ok else f"{answer.status_code}: {answer.text[:300]}"
    except requests.RequestException as error:
        problem = str(error)
    if problem and not isinstance(environment.runner, MasterRunner):
        print(f"error: {environment.host}/readyz: {problem}\nfix: make serve, or --host with the service's address")
        environment.process_exit_code = NO_SERVICE
        environment.runner.quit()


@events.test_stop.add_listener
def settle(environment: Environment, **_: Any) -> None:
    """Users have gone; what the service has accepted from them must end all the same."""
    chosen = environment.parsed_options
    keys = [key for key in (chosen.api_keys or "").split(",") if key] or [""]
    deadline = time.monotonic() + chosen.settle_s
    with requests.Session() as session:
        while ledger.open and time.monotonic() < deadline:
            for job_id in list(ledger.open):
                _look(session, f"{environment.host}/v1/jobs/{job_id}", job_id, keys)
            time.sleep(0.5)
    ledger.close()
    print(f"--seed {chosen.seed}: {ledger}")
    for job_id, why in ledger.lost.items():
        print(f"lost: {job_id}: {why}")
        events.request.fire(
            request_type="LOST",
            name="accepted job",
            response_time=0,
            response_length=0,
            exception=RuntimeError(why),
            context={},
        )
    if ledger.lost:
        environment.process_exit_code = LOST


def _look(session: requests.Session, url: str, job_id: str, keys: list[str]) -> None:
    """With the key of the user whose job it is, which is one of these."""
    statuses = set()
    for key in keys:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = session.get(url, headers=headers, timeout=30)
        except requests.RequestException:
            return
        statuses.add(answer.status_code)
        if answer.ok:
            job = answer.json()
            ledger.see(job_id, job["status"])
            if job["status"] in ENDED:
                return
    if statuses == {404}:
        ledger.lose(job_id, "unknown to the service")
