"""What the service itself must remember across restarts, such as being paused: a few keys beside the jobs."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Table, Text, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.tables import metadata

PAUSED = "paused"

service_state = Table(
    "service_state",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


async def write(connection: AsyncConnection, values: Mapping[str, str]) -> None:
    await connection.execute(delete(service_state).where(service_state.c.key.in_(values)))
    await connection.execute(insert(service_state), [{"key": key, "value": value} for key, value in values.items()])


async def read(connection: AsyncConnection) -> dict[str, str]:
    rows = await connection.execute(select(service_state.c.key, service_state.c.value))
    return {row.key: row.value for row in rows}
