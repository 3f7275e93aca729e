"""Who uses such a service: designers, a team after its meeting, scripts, onlookers, people who change their mind."""

from __future__ import annotations

import time
from typing import Any

import gevent
from locust import between, task

from loadtest.ledger import ENDED
from loadtest.visitor import Seen, Visitor


class Designer(Visitor):
    """Thinks, makes two or three pictures a minute, and watches each until it is there."""

    weight = 6

    def wait_time(self) -> float:
        return float(self.pace * self.chance.uniform(18, 28))

    @task(7)
    def something_new(self) -> None:
        self.draw(self.wish(previews=1))

    @task(2)
    def variations(self) -> None:
        """The same words with other seeds, one job for each, at once."""
        body = self.wish()
        gevent.joinall([gevent.spawn(self.draw, body | {"seed": body["seed"] + number}) for number in range(3)])

    @task(1)
    def the_same_again(self) -> None:
        body = self.wish()
        self.draw(body)
        self.draw(body)

    def draw(self, body: dict[str, Any]) -> None:
        if seen := self.submit(body):
            self.fetch(seen, self.follow(seen))


class MeetingGoer(Visitor):
    """Everybody comes out of the meeting at the same time, and wants to see the idea."""

    weight = 2

    def wait_time(self) -> float:
        every_s = self.environment.parsed_options.meeting_s
        return float(every_s - time.time() % every_s)

    @task
    def try_the_idea(self) -> None:
        for _ in range(2):
            if seen := self.submit(self.wish()):
                self.fetch(seen, self.follow(seen))


class BatchScript(Visitor):
    """Has a list to work off, several pictures a job, three jobs in flight; nobody waits for it."""

    weight = 1

    def wait_time(self) -> float:
        return float(self.pace * self.chance.uniform(2, 10))

    @task
    def a_few_of_the_list(self) -> None:
        bodies = [self.wish(n=self.chance.randint(2, 4), priority="batch") for _ in range(3)]
        for seen in [seen for body in bodies if (seen := self.submit(body))]:
            self.fetch(seen, self.wait(seen))


class GalleryBrowser(Visitor):
    """Scrolls through thumbnails, looks at one picture closely."""

    weight = 2
    wait_time = between(2, 6)

    @task
    def scroll(self) -> None:
        page: dict[str, Any] = {"next_cursor": None, "has_more": True}
        for _ in range(3):
            if not page["has_more"]:
                return
            cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else ""
            answer = self.client.get(f"/v1/assets?limit=20{cursor}", name="/v1/assets?limit=20")
            if not answer.ok:
                return
            page = answer.json()
            looks = [gevent.spawn(self._look, picture["id"], "thumbnail") for picture in page["data"][:6]]
            gevent.joinall(looks)
            self.pause(1, 3)
        if page["data"]:
            self._look(self.chance.choice(page["data"])["id"], "metadata")

    def _look(self, asset_id: str, part: str) -> None:
        """Another user's cleaning up may be quicker."""
        path = f"/v1/assets/{asset_id}/{part}"
        with self.client.get(path, name=f"/v1/assets/{{id}}/{part}", catch_response=True) as answer:
            if answer.status_code == 404:
                answer.success()


class Canceller(Visitor):
    """Sees the mistake in the prompt right after sending it."""

    weight = 1

    def wait_time(self) -> float:
        return float(self.pace * self.chance.uniform(10, 20))

    @task
    def never_mind(self) -> None:
        if not (seen := self.submit(self.wish(n=2))):
            return
        gevent.sleep(self.chance.uniform(0, 1))
        began = time.perf_counter()
        answer = self.client.post(f"/v1/jobs/{seen.job['id']}/cancel", name="/v1/jobs/{id}/cancel")
        if answer.ok:
            self._is_over(seen, answer.json(), began)

    def _is_over(self, seen: Seen, job: dict[str, Any], began: float) -> None:
        job = job if job["status"] in ENDED else self.wait(Seen(job, seen.began))
        self.told(job)
        if job["status"] == "canceled":
            self.note("canceled after", time.perf_counter() - began)
