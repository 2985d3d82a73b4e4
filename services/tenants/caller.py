"""Who calls, for which tenant, with which rights."""

from dataclasses import dataclass
from uuid import UUID

from services.errors import MissingScope

SCOPES = frozenset(
    {
        "requests:read", "requests:write", "requests:verify", "requests:decide", "requests:operate", "jobs:read", "jobs:operate", "models:read",
        "models:write", "models:destroy", "checkpoints:read", "datasets:read", "datasets:write", "policies:read", "policies:write", "holds:read",
        "holds:write", "webhooks:read", "webhooks:write", "audit:read", "keys:admin", "system:read",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `principal` names the client of the API key; it is what decisions and audit events record."""

    tenant_id: UUID
    principal: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raise MissingScope unless the caller holds `scope`."""
        if scope not in self.scopes:
            raise MissingScope(scope=scope)
