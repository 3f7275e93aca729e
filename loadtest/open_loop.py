"""Arrivals that do not wait for the service: an open loop, beside or instead of the users of locustfile.py.

python -m locust -f loadtest/locustfile.py,loadtest/open_loop.py --host http://127.0.0.1:8000 --headless \\
    --run-time 2m --rate 3 --burst 5 Arrivals
"""

from __future__ import annotations

import math
from argparse import ArgumentParser

import gevent
from locust import LoadTestShape, events, task

from loadtest.visitor import Visitor

EACH_PER_S = 0.2  # arrivals that one Locust user stands for
BURST_FROM, BURST_TO = 1 / 3, 1 / 2  # of the run


@events.init_command_line_parser.add_listener
def options(parser: ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=2.0, help="arrivals a second")
    parser.add_argument("--burst", type=float, default=1.0, help="times the rate, from a third to half of the run")
    parser.add_argument("--arrivals", choices=("poisson", "even"), default="poisson")


class Arrivals(Visitor):
    """Brings people to the door at a rate, however long those before them wait inside."""

    def wait_time(self) -> float:
        """A constant throughput, whatever the service does: `arrive` takes no time."""
        if self.environment.parsed_options.arrivals == "even":
            return 1 / EACH_PER_S
        return self.chance.expovariate(EACH_PER_S)

    def on_start(self) -> None:
        super().on_start()
        gevent.sleep(self.chance.uniform(0, 1 / EACH_PER_S))  # not all at once

    @task
    def arrive(self) -> None:
        gevent.spawn(self.visit)

    def visit(self) -> None:
        if seen := self.submit(self.wish()):
            self.fetch(seen, self.follow(seen))


class Rate(LoadTestShape):
    """As many users as the rate of this moment needs."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        run_s = options.run_time or math.inf
        if self.get_run_time() >= run_s:
            return None
        in_burst = BURST_FROM * run_s <= self.get_run_time() < BURST_TO * run_s
        rate = options.rate * (options.burst if in_burst else 1.0)
        return max(1, round(rate / EACH_PER_S)), 100.0
