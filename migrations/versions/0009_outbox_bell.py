"""A bell for the outbox: who listens hears of new rows when they are committed, and need not look for them."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Ring once a statement, whatever its rows; the server rings once a transaction."""
    op.execute(
        "CREATE FUNCTION lethe_outbox_bell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('lethe_outbox', ''); RETURN NULL; END $$"
    )
    op.execute("ALTER FUNCTION lethe_outbox_bell() OWNER TO lethe_owner")
    op.execute("CREATE TRIGGER bell AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION lethe_outbox_bell()")


def downgrade() -> None:
    """Take the bell away; control looks every 50 ms with it or without."""
    op.execute("DROP TRIGGER bell ON outbox")
    op.execute("DROP FUNCTION lethe_outbox_bell()")
