"""Sends a task to the replica that the Dispatcher chose, by Ray Serve's request router interface."""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments import roster  # never what is in it: Ray Serve would pickle a copy
from serve.messages import Task


class PlacedRouter(RequestRouter):  # type: ignore[misc]
    """Calls whose first argument is a Task go to `task.replica_id`, while Ray Serve lists it.

    All others go to any replica, and so do those of one that was withdrawn since it got them. None waits for its own:
    few calls are routed at a time, and those behind it, for replicas that are well, would wait as well.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        ids = frozenset(replica.replica_id.unique_id for replica in replicas)
        roster.ROSTER.update(ids, self._deployment_id.name)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        roster.ROSTER.died(replica_id.unique_id, self._deployment_id.name)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        task = pending_request.args[0] if pending_request.args else None
        if isinstance(task, Task):
            placed = [replica for replica in candidate_replicas if replica.replica_id.unique_id == task.replica_id]
            return [placed or candidate_replicas]
        return [candidate_replicas]

    def _get_pending_request_matching_metadata(self, request_metadata: object = None) -> PendingRequest | None:
        """The request that the choice was made for: the base class would hand the replica to the oldest one."""
        wanted = getattr(request_metadata, "internal_request_id", None)
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata.internal_request_id == wanted and not pending.future.done():
                return pending
        return None
