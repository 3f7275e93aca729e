"""Sends a task to the replica that the Dispatcher chose, by Ray Serve's request router interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve.messages import Task


class Roster:
    """Which Denoisers Ray Serve gives calls to. One that was on it and is no more, but lives, is being stopped."""

    def __init__(self) -> None:
        self._seen: frozenset[str] = frozenset()
        self._now: Mapping[str, frozenset[str]] = {}

    def update(self, ids: frozenset[str], deployment: str = "Denoiser") -> None:
        """Called in a router's thread, for its own deployment: names are bound anew, sets never changed."""
        before = self._all()
        self._now = {**self._now, deployment: ids}
        left = self._seen - before
        self._seen = before | ids | (left if len(left) < REMEMBERED else frozenset())

    def died(self, replica_id: str, deployment: str = "Denoiser") -> None:
        """Ray says so before Ray Serve's next list does; its process may live on, where its node was cut off."""
        self.update(self._now.get(deployment, frozenset()) - {replica_id}, deployment)

    def withdrawn(self, replica_id: str) -> bool:
        return replica_id in self._seen and replica_id not in self._all()

    def _all(self) -> frozenset[str]:
        return frozenset[str]().union(*self._now.values())


REMEMBERED = 1000
ROSTER = Roster()  # of this process: Ray Serve makes the routers


class PlacedRouter(RequestRouter):  # type: ignore[misc]
    """Calls whose first argument is a Task go to `task.replica_id`, as soon as Ray Serve knows it.

    All others go to any replica, and so do those of one that is gone, which is found out there.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        ids = frozenset(replica.replica_id.unique_id for replica in replicas)
        ROSTER.update(ids, self._deployment_id.name)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        ROSTER.died(replica_id.unique_id, self._deployment_id.name)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        task = pending_request.args[0] if pending_request.args else None
        if isinstance(task, Task):
            placed = [replica for replica in candidate_replicas if replica.replica_id.unique_id == task.replica_id]
            if placed or ROSTER.withdrawn(task.replica_id):
                return [placed or candidate_replicas]
            return []  # it has told the Dispatcher of itself before Ray Serve tells of it: to be asked again
        return [candidate_replicas]

    def _get_pending_request_matching_metadata(self, request_metadata: object = None) -> PendingRequest | None:
        """The request that the choice was made for: the base class would hand the replica to the oldest one."""
        wanted = getattr(request_metadata, "internal_request_id", None)
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata.internal_request_id == wanted and not pending.future.done():
                return pending
        return None
