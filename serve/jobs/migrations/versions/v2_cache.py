"""How a job's pictures came about, what may answer the next identical one, and which pictures are missing."""

import sqlalchemy as sa
from alembic import op

revision = "2_cache"
down_revision = "1"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("cache", sa.Text, nullable=False, server_default="miss"))
        jobs.add_column(sa.Column("cache_key", sa.Text))
        jobs.add_column(sa.Column("errors", sa.Text, nullable=False, server_default="[]"))
    op.create_index("ix_jobs_cache_key", "jobs", ["cache_key", "completed_at"])


def downgrade() -> None:
    op.drop_index("ix_jobs_cache_key", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        for column in ("errors", "cache_key", "cache"):
            jobs.drop_column(column)
