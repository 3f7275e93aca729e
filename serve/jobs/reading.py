"""Reading while the database is away is refused in words, as writing is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve.errors import Unavailable

RETRY_AFTER_S = 5


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Raises Unavailable."""
    try:
        async with engine.connect() as connection:
            yield connection
    except (OperationalError, InterfaceError, InternalError, OSError) as error:
        hint = "try again; the server's log has the reason"
        raise Unavailable("the job store is not answering", hint=hint, retry_after=RETRY_AFTER_S) from error
