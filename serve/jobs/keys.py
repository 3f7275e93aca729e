"""API keys in the job store. Written by the Dispatcher and by `zimage keys`: a row is made once and revoked once."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Column, Double, Index, RowMapping, Table, Text, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from serve.access.keys import ApiKey
from serve.errors import NotFound, Unavailable
from serve.jobs.tables import metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("last_four", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Index("ux_api_keys_digest", "digest", unique=True),
)


class SqlKeys:
    """Not fenced by the writer's epoch: nobody keeps a copy that another's write could contradict."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writes=True)

    async def all(self) -> list[ApiKey]:
        """Oldest first, revoked and expired ones too. Raises Unavailable."""
        try:
            async with self._engine.connect() as connection:
                rows = (await connection.execute(select(api_keys).order_by(api_keys.c.id))).mappings()
                return [_key(row) for row in rows]
        except (DBAPIError, OSError) as error:
            raise Unavailable("the job store is not answering", hint="try again", retry_after=5) from error

    async def add(self, key: ApiKey) -> None:
        """The same key again changes nothing."""
        async with self._writing.begin() as connection:
            known = select(api_keys.c.id).where(api_keys.c.id == key.id)
            if (await connection.execute(known)).first() is None:
                await connection.execute(insert(api_keys).values(asdict(key)))

    async def revoke(self, key_id: str, at: float) -> ApiKey:
        """One that was revoked before stays so since then. Raises NotFound."""
        async with self._writing.begin() as connection:
            this = api_keys.c.id == key_id
            await connection.execute(
                update(api_keys).where(this, api_keys.c.revoked_at.is_(None)).values(revoked_at=at)
            )
            row = (await connection.execute(select(api_keys).where(this))).mappings().first()
        if row is None:
            raise NotFound(f"no key {key_id[:64]!r}", param="key_id", hint="zimage keys list tells their ids")
        return _key(row)


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**row)
