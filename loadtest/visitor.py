"""What all Locust users do with the service: send a job, follow it, fetch its picture, and keep the books."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gevent
from locust import HttpUser, events
from requests import RequestException

from loadtest.ledger import ENDED, Ledger

TRIES = 4
MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}
THINGS = ("red fox", "penguin", "yellow banana", "cat", "green tree", "owl", "blue whale", "house")
COLOURS = ("red", "blue", "green", "yellow", "white", "purple")
SIZES = ("64x64", "128x128", "192x192", "256x256")
SIZE_SHARES = (30, 50, 15, 5)

ledger = Ledger()

Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A job from its user's side."""

    job: Job
    began: float


class Visitor(HttpUser):
    """One who comes with an API key, where there is one, and chance of their own, the same in every run."""

    abstract = True
    count = 0

    def on_start(self) -> None:
        options = self.environment.parsed_options
        number, Visitor.count = Visitor.count, Visitor.count + 1
        self.kind = type(self).__name__
        self.chance = random.Random(f"{options.seed} {self.kind} {number}")
        self.pace = options.pace
        if keys := [key for key in (options.api_keys or "").split(",") if key]:
            self.client.headers["Authorization"] = f"Bearer {keys[number % len(keys)]}"

    def pause(self, least_s: float, most_s: float) -> None:
        gevent.sleep(self.pace * self.chance.uniform(least_s, most_s))

    def wish(self, **fields: Any) -> Job:
        """A request that nobody has made before, or not in this run."""
        (size,) = self.chance.choices(SIZES, SIZE_SHARES)
        thing, colour = self.chance.choice(THINGS), self.chance.choice(COLOURS)
        body = {"prompt": f"a {thing} on a {colour} background", "size": size, "seed": self.chance.getrandbits(48)}
        return body | {"priority": "interactive"} | fields

    def submit(self, body: Job) -> Seen | None:
        """The accepted job; None where the service is full and stays so, or refuses.

        A user insists under one Idempotency-Key, so that an answer that got lost makes no second job.
        """
        key, began = {"Idempotency-Key": secrets.token_hex(8)}, time.perf_counter()
        for _ in range(TRIES):
            with self.client.post("/v1/jobs", json=body, headers=key, catch_response=True) as answer:
                if answer.status_code in (200, 202):
                    job: Job = answer.json()
                    ledger.accept(job["id"])
                    self.told(job)
                    self.note("first byte", time.perf_counter() - began)
                    return Seen(job, began)
                if not (wait_s := answer.headers.get("Retry-After")):
                    if answer.status_code:
                        return None  # its failure is in the statistics
                    wait_s = "1"
                else:
                    answer.success()  # full, and says so: a refusal is no failure
                    self.note(f"refused: {answer.json()['error']['code']}", time.perf_counter() - began)
            gevent.sleep(float(wait_s))
        return None

    def follow(self, seen: Seen) -> Job:
        """Watches the job by server-sent events until it has ended, and comes back where they break off."""
        job, last, previewed = dict(seen.job), {"Last-Event-ID": str(seen.job["status_seq"])}, False
        path, name = f"/v1/jobs/{job['id']}/events", "/v1/jobs/{id}/events"
        for attempt in range(TRIES):
            if job["status"] in ENDED:
                break
            gevent.sleep(attempt)
            with self.client.get(path, name=name, headers=last, stream=True, catch_response=True) as answer:
                for event in _events(answer.iter_lines(), last) if answer.status_code == 200 else ():
                    if event["type"] != "job.preview":
                        job |= event.get("data", {})
                        self.told(job)
                    elif not previewed:
                        previewed = True
                        self.note("first preview", time.perf_counter() - seen.began)
        return self.wait(Seen(job, seen.began))

    def wait(self, seen: Seen) -> Job:
        """Asks for the job until it has ended, by long poll."""
        job = seen.job
        while job["status"] not in ENDED:
            path, name = f"/v1/jobs/{job['id']}?wait=30", "/v1/jobs/{id}?wait=30"
            with self.client.get(path, name=name, catch_response=True) as answer:
                if answer.status_code == 200:
                    job = answer.json()
                elif answer.status_code == 404:
                    ledger.lose(job["id"], "unknown to the service")
                    return job
                else:
                    gevent.sleep(1)
            self.told(job)
        return job

    def fetch(self, seen: Seen, job: Job) -> None:
        """The pictures of a job that has ended; a success without them is a loss."""
        if job["status"] != "succeeded":
            return
        self.note("wait", job["timings"]["queue_ms"] / 1e3)
        if missing := [image["asset_id"] for image in job["result"]["images"] if not self._load(image)]:
            ledger.lose(job["id"], f"no picture {', '.join(missing)}")
        else:
            self.note("time to picture", time.perf_counter() - seen.began)

    def _load(self, image: Job) -> bool:
        """Whether it is there and whole; a connection that fails says nothing, and is tried again."""
        for _ in range(TRIES):
            with self.client.get(image["url"], name="/v1/assets/{id}", catch_response=True) as answer:
                if answer.status_code == 200:
                    if len(answer.content) == image["bytes"] and answer.content.startswith(MAGIC[image["format"]]):
                        return True
                    answer.failure("a picture that is not whole")
            gevent.sleep(1)
        return False

    def told(self, job: Job) -> None:
        ledger.see(job["id"], job["status"])

    def note(self, what: str, seconds: float, error: Exception | None = None) -> None:
        """A line of its own in Locust's statistics."""
        events.request.fire(
            request_type=self.kind,
            name=what,
            response_time=1e3 * seconds,
            response_length=0,
            exception=error,
            context={},
        )


def _events(lines: Iterable[bytes], last: dict[str, str]) -> Iterator[Job]:
    """`last` is kept at what to come back with."""
    with suppress(RequestException):  # it broke off
        for line in lines:
            if line.startswith(b"id: "):
                last["Last-Event-ID"] = line.removeprefix(b"id: ").decode()
            elif line.startswith(b"data: "):
                event: Job = json.loads(line.removeprefix(b"data: "))
                if "type" not in event:
                    return  # an error ends the stream
                yield event
