"""The tables of the job store as they are now; `migrations/` leads there from every older form."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Column, Connection, Double, Index, Integer, MetaData, Table, Text, text

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x2D1A6E  # any number, the same in every process

metadata = MetaData()

writer = Table(
    "writer",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("submission", Text, nullable=False),
    Column("search", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("body_sha256", Text),
    Column("parent_id", Text),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("images", Text, nullable=False),
    Column("timings", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("cache", Text, nullable=False, server_default="miss"),
    Column("cache_key", Text),
    Column("errors", Text, nullable=False, server_default="[]"),
    Index("ix_jobs_user_id", "user", "id"),
    Index("ix_jobs_completed_at", "completed_at"),
    Index("ix_jobs_cache_key", "cache_key", "completed_at"),
    Index("ux_jobs_user_idempotency_key", "user", "idempotency_key", unique=True),
)

assets = Table(
    "assets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("image", Integer, nullable=False),
    Column("user", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Index("ix_assets_user_job_id", "user", "job_id"),
    Index("ix_assets_job_id", "job_id"),
    Index("ix_assets_created_at", "created_at", "bytes"),
)

asset_removals = Table(
    "asset_removals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("due_at", Double, nullable=False),
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("input", Text, primary_key=True),
    Index("ix_job_inputs_input", "input"),
)


def migrate(connection: Connection) -> None:
    """Brings the database to the newest form, inside the caller's transaction."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction has locked the file already
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
