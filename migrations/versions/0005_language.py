"""A request for an entity keeps its names encrypted while it is open: what the model is asked and judged by are the names themselves."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and the check that it is empty once the request is closed."""
    op.execute("ALTER TABLE deletion_request ADD COLUMN names_sealed BYTEA")
    op.execute("ALTER TABLE deletion_request ADD CONSTRAINT ck_deletion_request_names CHECK (closed_at IS NULL OR names_sealed IS NULL)")


def downgrade() -> None:
    """Drop both."""
    op.execute("ALTER TABLE deletion_request DROP COLUMN names_sealed")
