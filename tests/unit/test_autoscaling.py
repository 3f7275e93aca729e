"""How many replicas for how much work: properties of the policy, and what of it Ray sees."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from deployments.autoscaling import STALE_S, Bounds, History, Pace, decide, policy
from serve.jobs.backlog import Demand, told, understood

PACE = Pace(drain_s=30.0, quiet_s=120.0)
BOUNDS = Bounds(1, 8)
TICK_S = 1.0

seconds = st.floats(0, 10_000)
demands = st.builds(
    Demand, backlog_s=seconds, pieces=st.integers(0, 500), busy=st.floats(0, 64), ready=st.integers(0, 64)
)
bounds = st.tuples(st.integers(0, 8), st.integers(1, 64)).map(lambda pair: Bounds(min(pair), max(pair)))
paces = st.builds(Pace, drain_s=st.floats(0.1, 600), quiet_s=st.floats(0.1, 3600))


def work(backlog_s: float, busy: float = 0.0) -> Demand:
    """In pictures of one second."""
    return Demand(backlog_s=backlog_s, pieces=backlog_s, busy=busy, ready=1)


def followed(demands: list[Demand], bounds: Bounds = BOUNDS, pace: Pace = PACE, begun: int = 1) -> list[int]:
    """The target after each, a tick apart."""
    history, targets = History.begun(0.0, begun), []
    for number, demand in enumerate(demands, 1):
        target, history = decide(demand, bounds, pace, history, number * TICK_S)
        targets.append(target)
    return targets


@settings(deadline=None)
@given(st.lists(demands, min_size=1, max_size=30), bounds, paces)
def test_never_outside_of_the_bounds(demands: list[Demand], bounds: Bounds, pace: Pace) -> None:
    assert all(bounds.least <= target <= bounds.most for target in followed(demands, bounds, pace))


@settings(deadline=None)
@given(st.lists(demands, max_size=20), demands, st.floats(0, 10_000), st.integers(0, 100), bounds, paces)
def test_more_work_never_means_fewer_replicas(
    before: list[Demand], demand: Demand, more_s: float, more: int, bounds: Bounds, pace: Pace
) -> None:
    demand = replace(demand, backlog_s=demand.backlog_s + 0.001, pieces=demand.pieces + 1)
    greater = replace(demand, backlog_s=demand.backlog_s + more_s, pieces=demand.pieces + more)
    assert followed([*before, greater], bounds, pace)[-1] >= followed([*before, demand], bounds, pace)[-1]


@settings(deadline=None)
@given(st.floats(1, 10_000))
def test_a_burst_is_answered_by_the_first_decision(backlog_s: float) -> None:
    needed = min(-(-backlog_s // PACE.drain_s), BOUNDS.most)
    assert followed([work(0)] * 5 + [work(backlog_s)])[-1] >= needed


@settings(deadline=None)
@given(st.integers(2, int(PACE.quiet_s)), st.floats(10, 1000), st.floats(0, 8), st.integers(0, 3))
def test_a_sawtooth_moves_nothing_once_it_is_known(period: int, height_s: float, busy: float, phase: int) -> None:
    teeth = [work(height_s * ((tick + phase) % period) / period, busy) for tick in range(period * (1200 // period))]
    targets = followed(teeth)
    ups = [number for number, (old, new) in enumerate(itertools.pairwise(targets)) if new > old]
    downs = [number for number, (old, new) in enumerate(itertools.pairwise(targets)) if new < old]
    assert not downs or not ups or max(ups) < min(downs), "never up again after down"
    assert len(set(targets[600:])) == 1


@settings(deadline=None)
@given(st.integers(31, 240), st.integers(1, 200))
def test_replicas_are_given_up_only_after_the_quiet_time(backlog_s: int, quiet_ticks: int) -> None:
    high = followed([work(backlog_s)])[-1]
    targets = followed([work(backlog_s)] + [work(0)] * quiet_ticks)
    until = int(PACE.quiet_s / TICK_S)
    assert set(targets[:until]) == {high}
    assert set(targets[until:]) <= {BOUNDS.least}


def test_a_steady_load_without_a_backlog_keeps_its_replicas() -> None:
    steady = [work(2.0, busy=3.0)] * 1000
    assert followed(steady, begun=4)[-1] == 4
    assert followed([work(2.0, busy=0.7)] * 1000, begun=4)[-1] == 1


def test_not_more_replicas_than_pictures() -> None:
    assert followed([Demand(backlog_s=600.0, pieces=2)]) == [2]


def test_work_that_was_never_measured_gets_one_replica_or_keeps_what_is_there() -> None:
    assert followed([Demand(pieces=40)], Bounds(0, 8), begun=0) == [1]
    assert followed([Demand(pieces=40, ready=3)] * 500, begun=3)[-1] == 3


def test_to_zero_and_back() -> None:
    none = Bounds(0, 4)
    assert followed([work(5.0, busy=1.0)] * 60 + [work(0)] * 500, none)[-1] == 0
    assert followed([work(0)] * 10 + [work(0.5)], none, begun=0)[-1] == 1


@settings(deadline=None)
@given(demands)
def test_demand_crosses_ray_as_numbers(demand: Demand) -> None:
    numbers = told("denoiser", demand)
    assert understood("denoiser", numbers) == demand
    assert understood("text_encoder", numbers) is None


def context(name: str, target: int = 1, at: float = 100.0, told_at: float = 100.0, **numbers: float) -> Any:
    metrics = {key: {"replica": [SimpleNamespace(timestamp=told_at, value=value)]} for key, value in numbers.items()}
    return SimpleNamespace(
        deployment_name=name,
        target_num_replicas=target,
        current_num_replicas=target,
        total_num_requests=0.0,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 10, get_upscaling_factor=lambda: 1),
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        current_time=at,
        raw_metrics=metrics,
    )


def contexts(told_at: float = 100.0) -> dict[Any, Any]:
    numbers = told("denoiser", work(100.0)) | told("text_encoder", work(3.0)) | {"drain_s": 30.0, "quiet_s": 120.0}
    dispatcher = context("Dispatcher", told_at=told_at, **numbers)
    roles = {name: context(name, target=2) for name in ("TextEncoder", "Denoiser")}
    return {"Dispatcher": dispatcher, **roles, "Gateway": context("Gateway", target=3)}


def test_each_role_by_its_own_backlog_gateways_by_requests_and_the_dispatcher_never() -> None:
    targets, states = policy(contexts())
    assert targets == {"Denoiser": 4, "TextEncoder": 2, "Gateway": 0}
    assert set(states) == {"Denoiser", "TextEncoder", "Gateway"}


def test_each_model_is_scaled_by_its_own_work() -> None:
    quiet, busy = told("denoiser", work(0.0)), told("denoiser-base", work(100.0))
    dispatcher = context("Dispatcher", **quiet, **busy, drain_s=30.0, quiet_s=120.0)
    fleets = {name: context(name, target=1) for name in ("Denoiser", "Denoiser-base", "TextEncoder-base")}
    targets, _ = policy({"Dispatcher": dispatcher, **fleets})
    assert targets == {"Denoiser": 1, "Denoiser-base": 4}, "of the third nothing was told: it stays as it is"


def test_the_history_is_kept_by_ray_between_decisions() -> None:
    given = contexts()
    _, states = policy(given)
    for name in ("TextEncoder", "Denoiser"):
        given[name].policy_state = states[name]
        given[name].current_time = 100.0 + 121.0
    given["Dispatcher"].current_time = 100.0
    targets, _ = policy(given)
    assert (targets["Denoiser"], targets["TextEncoder"]) == (4, 1)


@pytest.mark.parametrize("given", [contexts(told_at=100.0 - STALE_S), {"Denoiser": context("Denoiser", target=5)}])
def test_without_news_of_the_dispatcher_nothing_changes(given: dict[Any, Any]) -> None:
    targets, states = policy(given)
    assert "Denoiser" not in targets
    assert states["Denoiser"]["history"].wishes


def test_replicas_that_start_for_longer_than_the_quiet_time_are_not_given_up_before_they_are_ready() -> None:
    given = contexts()
    none = {"denoiser.ready": 0.0, "denoiser.pieces": 0.0, "denoiser.backlog_s": 0.0}
    states: dict[Any, Any] = {}
    for second, ready in [(100, 0.0), (400, 0.0), (401, 1.0), (519, 1.0), (521, 1.0)]:
        numbers = {key: [SimpleNamespace(timestamp=float(second), value=value)] for key, value in none.items()}
        numbers["denoiser.ready"][0].value = ready
        given["Dispatcher"].raw_metrics |= {key: {"replica": series} for key, series in numbers.items()}
        for series in given["Dispatcher"].raw_metrics.values():
            series["replica"][-1].timestamp = float(second)
        given["Dispatcher"].current_time = given["Denoiser"].current_time = float(second)
        given["Denoiser"].capacity_adjusted_min_replicas = 0
        given["Denoiser"].policy_state = states.get("Denoiser", {})
        targets, states = policy(given)
        assert targets["Denoiser"] == (0 if second == 521 else 2), second


def test_the_policy_is_pickled_as_ray_does() -> None:
    from ray.serve.config import AutoscalingPolicy

    pickled = AutoscalingPolicy(policy_function="deployments.autoscaling:policy").get_serialized_policy_def()
    targets, _ = cloudpickle.loads(pickled)(contexts())
    assert targets["Denoiser"] == 4
