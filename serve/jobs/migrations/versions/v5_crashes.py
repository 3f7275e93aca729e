"""How often the service died while a job was on a replica."""

import sqlalchemy as sa
from alembic import op

revision = "5_crashes"
down_revision = "4_webhooks"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("crashes", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("crashes")
