"""Finished pictures, with those of jobs that succeeded before; and files that are to be removed."""

import json

import sqlalchemy as sa
from alembic import op

revision = "3_assets"
down_revision = "2_cache"


def upgrade() -> None:
    assets = op.create_table(
        "assets",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("image", sa.Integer, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_assets_user_job_id", "assets", ["user", "job_id"])
    op.create_index("ix_assets_job_id", "assets", ["job_id"])
    op.create_index("ix_assets_created_at", "assets", ["created_at", "bytes"])
    op.create_table(
        "asset_removals",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    jobs = sa.table("jobs", *map(sa.column, ("id", "user", "status", "completed_at", "images")))
    connection = op.get_bind()
    for job in connection.execute(sa.select(jobs).where(jobs.c.status == "succeeded")).all():
        rows = [
            {
                "id": image["asset_id"],
                "job_id": job.id,
                "image": int(image["asset_id"].rpartition("-")[2]),
                "user": job.user,
                "created_at": job.completed_at,
                "bytes": image["bytes"],
            }
            for image in json.loads(job.images)
        ]
        if rows:
            connection.execute(sa.insert(assets), rows)


def downgrade() -> None:
    op.drop_table("asset_removals")
    op.drop_table("assets")
