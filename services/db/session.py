"""Engines and the unit of work: the one place that begins, commits and rolls back."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from services.db.crash import crash_point
from services.errors import DatabaseDown

_ENTER = text("SELECT set_config('app.tenant', :tenant, true)")
_CONNECT = {"connect_timeout": 5}


def driver_url(url: str) -> str:
    """Return `url` with the psycopg driver named; `postgresql://`, `postgres://` and `postgresql+psycopg://` are taken."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def make_engine(url: str, *, pool_size: int = 10, pool_wait_s: float = 2.0) -> Engine:
    """Return a pooled engine on psycopg 3. It connects at first use."""
    return create_engine(driver_url(url), pool_size=pool_size, max_overflow=0, pool_timeout=pool_wait_s, pool_pre_ping=True, connect_args=_CONNECT)


def make_async_engine(url: str, *, pool_size: int = 10, pool_wait_s: float = 2.0) -> AsyncEngine:
    """Return a pooled asynchronous engine on psycopg 3. It connects at first use."""
    return create_async_engine(
        driver_url(url), pool_size=pool_size, max_overflow=0, pool_timeout=pool_wait_s, pool_pre_ping=True, connect_args=_CONNECT
    )


def enter_tenant(session: Session, tenant: UUID) -> None:
    """Show the rows of `tenant` to the rest of this transaction, and of no other tenant."""
    session.execute(_ENTER, {"tenant": str(tenant)})


@contextmanager
def unit_of_work(engine: Engine, *, tenant: UUID | None) -> Generator[Session]:
    """Run one transaction: committed at the end of the block, rolled back on any error.

    Args:
        engine: of the process's own role.
        tenant: whose rows are seen. Without one, a table of tenants raises when it is read, but for the roles that have a policy across tenants.

    Raises:
        DatabaseDown: the server does not answer, the pool is empty for too long, or the server gave the transaction up (deadlock, full disk).
    """
    try:
        with Session(engine, expire_on_commit=False) as session:
            if tenant is not None:
                enter_tenant(session, tenant)
            yield session
            crash_point("before commit")
            session.commit()
            crash_point("after commit")
    except (OperationalError, InterfaceError, PoolExhausted) as error:
        raise DatabaseDown from error


@asynccontextmanager
async def async_unit_of_work(engine: AsyncEngine, *, tenant: UUID | None) -> AsyncGenerator[AsyncSession]:
    """Run one transaction as `unit_of_work` does; ledger functions are called by `await session.run_sync(function, ...)`."""
    try:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            if tenant is not None:
                await session.execute(_ENTER, {"tenant": str(tenant)})
            yield session
            crash_point("before commit")
            await session.commit()
            crash_point("after commit")
    except (OperationalError, InterfaceError, PoolExhausted) as error:
        raise DatabaseDown from error
