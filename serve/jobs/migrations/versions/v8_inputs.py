"""Which jobs need which input pictures."""

import sqlalchemy as sa
from alembic import op

revision = "8_inputs"
down_revision = "7_service_state"


def upgrade() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("input", sa.Text, primary_key=True),
    )
    op.create_index("ix_job_inputs_input", "job_inputs", ["input"])


def downgrade() -> None:
    op.drop_table("job_inputs")
