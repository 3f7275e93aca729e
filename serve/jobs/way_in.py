"""Whether anybody could enter, and whether everybody could: looked at before others can reach the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError

from serve.access_settings import is_loopback
from serve.errors import ConfigError
from serve.jobs.keys import SqlKeys
from serve.jobs.store import store_of
from serve.settings import Settings


@asynccontextmanager
async def opened_keys(settings: Settings) -> AsyncIterator[SqlKeys]:
    """Beside a service that runs, or before its first start. Raises ConfigError when the store cannot be opened."""
    try:
        store = store_of(settings)
        await store.prepare()
    except (DBAPIError, OSError) as error:
        raise ConfigError(
            f"the job store cannot be opened: {str(error).splitlines()[0]}", hint="check `database` and `data`"
        ) from error
    try:
        yield store.keys
    finally:
        await store.close()


async def check_way_in(settings: Settings, host: str, keys: SqlKeys) -> None:
    """Raises ConfigError for a service that others can reach, and that nobody could enter or everybody could."""
    access = settings.access
    if is_loopback(host) or access.mode == "open" or access.oidc or access.ldap or await keys.all():
        return
    raise ConfigError(
        f"http_options.host is {host}, which other machines can reach, and there is no API key",
        param="http_options.host",
        hint=f"zimage keys create NAME --role admin --data {settings.data}   (or `access: open` under args, to let "
        "everybody in; or host: 127.0.0.1)",
    )
