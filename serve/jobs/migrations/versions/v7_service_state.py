"""What the service itself remembers, such as being paused."""

import sqlalchemy as sa
from alembic import op

revision = "7_service_state"
down_revision = "6_access"


def upgrade() -> None:
    op.create_table(
        "service_state",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("service_state")
