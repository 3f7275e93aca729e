"""API keys in the job store, beside a Dispatcher that writes jobs."""

from __future__ import annotations

import time

import pytest

from serve.access.keys import create
from serve.errors import ConfigError, NotFound
from serve.jobs.store import SqlJobStore
from serve.jobs.way_in import check_way_in, opened_keys
from serve.settings import Settings

PEPPER = b"p" * 32


async def test_keys_are_kept_in_order_and_revoked_once(store: SqlJobStore) -> None:
    made = [create(PEPPER, name=name, role="user", ttl_s=ttl_s)[1] for name, ttl_s in (("a", None), ("b", 5.0))]
    for key in (*made, made[0]):
        await store.keys.add(key)
    assert await store.keys.all() == made
    now = time.time()
    first = await store.keys.revoke(made[0].id, now)
    assert first.revoked_at == now
    assert await store.keys.revoke(made[0].id, now + 5) == first
    with pytest.raises(NotFound):
        await store.keys.revoke("unknown", now)


async def test_the_key_itself_is_nowhere(store: SqlJobStore, settings: Settings) -> None:
    text, key = create(PEPPER, name="a", role="user")
    await store.keys.add(key)
    assert text not in repr(await store.keys.all())
    if settings.database is None:
        files = [path.read_bytes() for path in settings.data.iterdir() if path.is_file()]
        assert not any(text.encode() in data for data in files)


async def test_another_process_makes_keys_while_the_writer_writes(store: SqlJobStore, settings: Settings) -> None:
    _, key = create(PEPPER, name="a", role="user")
    async with opened_keys(settings) as keys:
        await keys.add(key)
    assert await store.keys.all() == [key]
    await store.check()  # it is still the writer


@pytest.mark.parametrize(
    ("host", "access", "refused"),
    [
        ("127.0.0.1", "auto", False),
        ("localhost", "auto", False),
        ("::1", "required", False),
        ("0.0.0.0", "auto", True),
        ("0.0.0.0", "required", True),
        ("::", "auto", True),
        ("10.0.0.7", "auto", True),
        ("pictures.example.org", "auto", True),
        ("0.0.0.0", "open", False),
    ],
)
async def test_who_binds_elsewhere_needs_a_key(store: SqlJobStore, settings: Settings, host, access, refused) -> None:
    settings = Settings(data=settings.data, database=settings.database, access=access)
    if not refused:
        await check_way_in(settings, host, store.keys)
        return
    with pytest.raises(ConfigError, match="there is no API key") as error:
        await check_way_in(settings, host, store.keys)
    assert "zimage keys create NAME --role admin" in (error.value.hint or "")
    await store.keys.add(create(PEPPER, name="a", role="admin")[1])
    await check_way_in(settings, host, store.keys)
