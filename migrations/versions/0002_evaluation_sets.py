"""A model version may name a dataset version that it is judged on and did not learn from: role `evaluation` of a training input."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHECK = "role"
ROLES = ("train", "finetune", "repair", "reference")


def upgrade() -> None:
    """Allow the role."""
    _allow((*ROLES, "evaluation"))


def downgrade() -> None:
    """Drop what has the role, of every tenant, and forbid it."""
    op.execute("ALTER TABLE training_input NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM training_input WHERE role = 'evaluation'")
    op.execute("ALTER TABLE training_input FORCE ROW LEVEL SECURITY")
    _allow(ROLES)


def _allow(roles: tuple[str, ...]) -> None:
    op.execute(f"ALTER TABLE training_input DROP CONSTRAINT ck_training_input_{CHECK}")
    listed = ", ".join(f"'{role}'" for role in roles)
    op.execute(f"ALTER TABLE training_input ADD CONSTRAINT ck_training_input_{CHECK} CHECK (role IN ({listed}))")
