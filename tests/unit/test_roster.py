"""Whom Ray Serve gives calls to, and what becomes of those that it does not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError, WorkerCrashedError
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import RequestRouterConfig

from deployments import nodes, placement, roster
from deployments.remote import RemoteBackend
from deployments.roster import Roster
from serve.jobs.fleet import ReplicaGone
from serve.messages import Phase, ReplicaState, Task
from tests.unit.replicas import order


def ready(replica_id: str, **changes: Any) -> ReplicaState:
    return ReplicaState(**{"replica_id": replica_id, "role": "denoiser", "phase": Phase.READY} | changes)


def task(replica_id: str) -> Task:
    submission = order()
    return Task(
        id="j-0.1",
        job_id="j",
        image=0,
        asset_id="j-0",
        request=submission.request,
        prompt_tokens=2,
        previews=0,
        deadline_in=1.0,
        hard_deadline=False,
        attempt=1,
        replica_id=replica_id,
        user=None,
        request_id="",
        traceparent="",
    )


def test_who_died_is_withdrawn_before_ray_serve_says_so() -> None:
    roster = Roster()
    roster.update(frozenset("ab"))
    roster.died("a")
    assert roster.withdrawn("a")
    assert not roster.withdrawn("b")


def test_who_was_given_calls_and_is_not_any_more_is_withdrawn() -> None:
    roster = Roster()
    assert not roster.withdrawn("a"), "it is starting"
    roster.update(frozenset("ab"))
    roster.update(frozenset("b"))
    assert roster.withdrawn("a")
    assert not roster.withdrawn("b")
    roster.update(frozenset("bc"))
    roster.update(frozenset("c"))
    assert roster.withdrawn("a")
    assert roster.withdrawn("b")


def test_one_deployments_replicas_say_nothing_of_anothers() -> None:
    roster = Roster()
    roster.update(frozenset("a"), "Denoiser")
    roster.update(frozenset("x"), "Denoiser-base")
    assert not roster.withdrawn("a")
    roster.update(frozenset(), "Denoiser-base")
    assert (roster.withdrawn("a"), roster.withdrawn("x")) == (False, True)


def test_dead_is_final_though_ray_serve_may_list_it_for_a_while() -> None:
    roster = Roster()
    roster.update(frozenset("ab"))
    roster.died("a")
    roster.update(frozenset("abc"))
    assert [roster.lists(letter) for letter in "abc"] == [False, True, True]
    assert roster.withdrawn("a")


def test_who_is_taken_off_is_told_and_whether_it_is_dead() -> None:
    roster = Roster()
    told: list[tuple[str, bool]] = []
    roster.gone = lambda replica_id, dead: told.append((replica_id, dead))
    roster.update(frozenset("abc"))
    roster.died("a")
    assert told == [("a", True)]
    roster.update(frozenset("c"))
    assert told == [("a", True), ("b", False)]
    roster.died("b")
    assert told == [("a", True), ("b", False), ("b", True)], "Ray Serve has withdrawn it, and Ray says why"


def test_a_ready_denoiser_is_ready_while_it_is_listed() -> None:
    roster = Roster()
    assert roster.judge(ready("a")).phase is Phase.WARMING_UP, "a new Dispatcher knows nobody"
    roster.update(frozenset("a"))
    assert roster.judge(ready("a")).phase is Phase.READY
    roster.update(frozenset())
    assert roster.judge(ready("a")).phase is Phase.STOPPING


@pytest.mark.parametrize("changes", [{"role": "text_encoder"}, {"phase": Phase.LOADING}, {"phase": Phase.LOST}])
def test_what_else_a_replica_says_is_its_own_affair(changes: dict[str, Any]) -> None:
    assert Roster().judge(ready("a", **changes)) == ready("a", **changes)


async def test_who_is_listed_within_patience_is_waited_for() -> None:
    roster = Roster()
    assert not await roster.listing("a", 0.01)
    waiting = asyncio.create_task(roster.listing("a", 30))
    await asyncio.sleep(0.01)
    roster.update(frozenset("a"))
    assert await waiting


def test_all_routers_of_a_process_write_to_what_its_dispatcher_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve pickles their module by value, and unpickles it with every configuration."""
    monkeypatch.setattr(roster, "ROSTER", Roster())
    told: list[tuple[str, bool]] = []
    roster.ROSTER.gone = lambda replica_id, dead: told.append((replica_id, dead))
    config = RequestRouterConfig(request_router_class=f"{placement.__name__}.PlacedRouter")
    deployment = DeploymentID("Denoiser", "zimage")
    for letter in "ab":
        router = config.get_request_router_class()
        bare = router.__new__(router)
        empty: dict[str, Any] = {"_replicas": {}, "_replica_id_set": set(), "_queue_len_gauge_last_update": {}}
        bare.__dict__ |= empty | {"_deployment_id": deployment}
        bare.on_replica_actor_died(ReplicaID(letter, deployment))
    assert told == [("a", True), ("b", True)]


@pytest.mark.parametrize(("wanted", "chosen"), [("a", "a"), ("b", "b"), ("gone", "ab")])
async def test_no_call_waits_for_a_replica_that_is_not_listed(wanted: str, chosen: str) -> None:
    """Few are routed at a time: those behind it would wait as well."""
    there: list[Any] = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=letter)) for letter in "ab"]
    pending: Any = SimpleNamespace(args=[task(wanted)], routing_context=SimpleNamespace(should_backoff=False))
    router = placement.PlacedRouter.__new__(placement.PlacedRouter)
    (candidates,) = await router.choose_replicas(there, pending)
    assert "".join(replica.replica_id.unique_id for replica in candidates) == chosen


@pytest.mark.parametrize(
    ("states", "given_up"),
    [({"here": True}, False), ({"here": False}, True), ({"here": True, "there": False}, False), ({}, False)],
)
def test_a_replica_knows_when_ray_has_given_its_node_up(
    states: dict[str, bool], given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in states.items()])
    assert nodes.given_up() is given_up


class Failing:
    """The handle of a deployment whose calls end like this."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.generate = self

    async def remote(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(("cause", "gone"), [(ObjectLostError("00", None, ""), True), (WorkerCrashedError(), False)])
async def test_embeddings_that_were_lost_with_their_node_are_no_fault_of_the_job(cause: Exception, gone: bool) -> None:
    error = RayTaskError("generate", "", cause)
    backend = RemoteBackend(None, Failing(error))  # type: ignore[arg-type]
    with pytest.raises(ReplicaGone if gone else RayTaskError):
        await backend.generate(task("a"), [])


async def test_a_replica_that_ray_has_given_up_is_said_to_be_dead() -> None:
    backend = RemoteBackend(None, Failing(ActorDiedError()))  # type: ignore[arg-type]
    with pytest.raises(ReplicaGone) as raised:
        await backend.generate(task("a"), [])
    assert (raised.value.replica_id, raised.value.dead) == ("a", True)
