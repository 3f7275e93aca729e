"""How many TextEncoders and Denoisers: an application-level policy of Ray Serve, by the Dispatcher's backlog.

Ray pickles this module by value and calls `policy` in its controller, twice a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

from serve.jobs.backlog import Demand, understood

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

ROLES = {"TextEncoder": "text_encoder", "Denoiser": "denoiser"}
SOURCE = "Dispatcher"
BUSY = 0.8  # of its time, a replica may be at work before there should be one more
IDLE = 0.05  # mean of busy replicas below which there is no load at all
STALE_S = 60.0  # a Dispatcher that has told nothing for so long is being replaced: nothing is changed meanwhile


@dataclass(frozen=True, slots=True)
class Bounds:
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What waits is to be worked off within `drain_s`; replicas are given up when not wanted for `quiet_s`."""

    drain_s: float
    quiet_s: float


@dataclass(frozen=True, slots=True)
class History:
    """`wishes` of the last quiet time by when, oldest and highest first: each is lower than those before it.
    `load` is the mean of busy replicas until `at`."""

    at: float
    wishes: tuple[tuple[float, int], ...]
    load: float = 0.0

    @classmethod
    def begun(cls, now: float, replicas: int) -> History:
        """What is there was wanted by somebody."""
        return cls(now, ((now, replicas),))


def decide(demand: Demand, bounds: Bounds, pace: Pace, history: History, now: float) -> tuple[int, History]:
    """The number of replicas from now on. Up at once; down to what was wanted most within the quiet time.

    Pure, never outside of the bounds, and never lower for more work.
    """
    lately = math.exp(-3 * max(0.0, now - history.at) / pace.quiet_s)
    load = demand.busy + lately * (history.load - demand.busy)
    wish = max(_for_backlog(demand, pace.drain_s), _for_load(load))
    kept = [(at, earlier) for at, earlier in history.wishes if now - at < pace.quiet_s and earlier > wish]
    target = min(max(kept[0][1] if kept else wish, bounds.least), bounds.most)
    return target, History(now, (*kept, (now, wish)), load)


def _for_backlog(demand: Demand, drain_s: float) -> int:
    """As many as work it off in time, but not more than have something to do."""
    if demand.pieces <= 0:
        return 0
    if demand.backlog_s <= 0:  # not measured: there is work, and nobody knows how much
        return max(1, math.ceil(demand.ready))
    return max(1, min(math.ceil(demand.backlog_s / drain_s), math.ceil(demand.pieces)))


def _for_load(load: float) -> int:
    """A steady load leaves no backlog, and needs its replicas all the same."""
    return math.ceil((load - IDLE) / BUSY) if load > IDLE else 0


def role_of(deployment: str) -> str | None:
    """As the Dispatcher tells of it: what a further model's deployments are called ends with its name."""
    name, dash, model = deployment.partition("-")
    return ROLES[name] + dash + model if name in ROLES else None


def policy(
    contexts: Mapping[DeploymentID, AutoscalingContext],
) -> tuple[dict[DeploymentID, int | float], dict[DeploymentID, dict[str, Any]]]:
    """Ray's signature. What is not in the answer stays as it is."""
    numbers = _numbers(contexts)
    targets: dict[DeploymentID, int | float] = {}
    states: dict[DeploymentID, dict[str, Any]] = {}
    for deployment, context in contexts.items():
        if (role := role_of(context.deployment_name)) is None:
            if context.deployment_name != SOURCE:  # Gateways, by open requests
                targets[deployment], states[deployment] = replica_queue_length_autoscaling_policy(context)
            continue
        now = float(context.current_time or 0.0)
        history = context.policy_state.get("history") or History.begun(now, context.target_num_replicas)
        if (demand := understood(role, numbers)) is None:
            states[deployment] = {"history": replace(history, at=now)}
            continue
        if (
            demand.ready < 1 and context.target_num_replicas > 0
        ):  # they are starting, for longer than a quiet time perhaps
            history = History.begun(now, context.target_num_replicas)
        bounds = Bounds(context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas)
        pace = Pace(numbers["drain_s"], numbers["quiet_s"])
        targets[deployment], history = decide(demand, bounds, pace, history, now)
        states[deployment] = {"history": history}
    return targets, states


def _numbers(contexts: Mapping[DeploymentID, AutoscalingContext]) -> dict[str, float]:
    """What the Dispatcher has told last; nothing when that is too long ago."""
    found: dict[str, float] = {}
    for context in contexts.values():
        if context.deployment_name == SOURCE:
            for name, by_replica in (context.raw_metrics or {}).items():
                last = max((series[-1] for series in by_replica.values() if series), key=lambda p: p.timestamp)
                if (context.current_time or 0.0) - last.timestamp < STALE_S:
                    found[name] = last.value
    return found
