"""The gateway without servers: a door that knows two keys; whoever goes on to the ledger fails, for there is no engine."""

from typing import Any
from uuid import UUID

from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from models_store.memory import MemoryStore
from services.errors import Unauthenticated
from services.settings import DatabaseSettings, KeySettings, LimitSettings, Settings
from services.tenants.caller import SCOPES, Caller
from services.tenants.keys import KeyRing

TENANT = UUID(int=7)
ALL = {"Authorization": "Bearer all"}
NONE = {"Authorization": "Bearer none"}


class StandInDoor:
    """Takes `all` (every scope) and `none` (no scope)."""

    def __init__(self) -> None:
        self.keys = KeyRing("11" * 32, "22" * 32)
        self.engine = None

    async def caller(self, authorization: str | None) -> Caller:
        scopes = {"Bearer all": SCOPES, "Bearer none": frozenset[str]()}.get(authorization or "")
        if scopes is None:
            raise Unauthenticated
        return Caller(TENANT, "desk", scopes)


def gateway(**limits: Any) -> FastAPI:
    """Return it, with these limits."""
    settings = Settings(
        embedded=True,
        database=DatabaseSettings(url=SecretStr("postgresql://127.0.0.1:1/none")),
        keys=KeySettings(encryption=SecretStr("11" * 32), pepper=SecretStr("22" * 32), cursor=SecretStr("33" * 32)),
        limits=LimitSettings(**limits),
    )
    made = create_app(settings, store=MemoryStore())
    made.state.door = StandInDoor()
    return made
