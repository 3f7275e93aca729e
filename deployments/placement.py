"""Sends a task to the replica that the Dispatcher chose, by Ray Serve's request router interface."""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve.messages import Task


class PlacedRouter(RequestRouter):  # type: ignore[misc]
    """Calls whose first argument is a Task go to `task.replica_id`; all others, or when it is gone, to any replica."""

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
