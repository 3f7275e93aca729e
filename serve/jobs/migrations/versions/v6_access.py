"""API keys, and what users have drawn."""

import sqlalchemy as sa
from alembic import op

revision = "6_access"
down_revision = "5_crashes"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("last_four", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_index("ux_api_keys_digest", "api_keys", ["digest"], unique=True)
    op.create_table(
        "usage",
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("span", sa.Text, nullable=False),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("pixel_steps", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user", "span", "began_at"),
    )
    op.create_index("ix_usage_began_at", "usage", ["began_at"])


def downgrade() -> None:
    op.drop_table("usage")
    op.drop_table("api_keys")
