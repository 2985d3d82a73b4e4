"""Workers say what they are: queue, device with its memory, versions. The gateway refuses by it what no live worker could hold."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; workers write it, every process reads it."""
    op.execute(
        "CREATE TABLE worker (name TEXT NOT NULL, queue TEXT NOT NULL, device JSONB NOT NULL, versions JSONB NOT NULL,"
        " seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, CONSTRAINT pk_worker PRIMARY KEY (name))"
    )
    op.execute("ALTER TABLE worker OWNER TO lethe_owner")
    op.execute("GRANT SELECT ON worker TO lethe_gateway, lethe_control")
    op.execute("GRANT SELECT, INSERT, UPDATE ON worker TO lethe_worker")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE worker")
