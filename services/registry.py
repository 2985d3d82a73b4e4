"""Registries of plug-ins: one decorator, one name, no index.

`discover` imports every module of a package, so that a new file is found without another edit. Code of other distributions enters only by
entry points, and only of distributions that the operator allowed. What fails to import is kept with its error, never swallowed.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from services.errors import UnknownComponent

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


class NameTaken(Exception):
    """Two components claim one name; the second claim is an error of the programmer."""


class Registry(Generic[T]):
    """Names and what they stand for, of one kind (`method`, `metric`, ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.broken: dict[str, str] = {}
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Return the decorator that gives `name` to a class and sets its attribute `name`. Raises NameTaken on a second claim."""

        def claim(component: C) -> C:
            held = self._entries.get(name)
            if held is not None and (held.__module__, held.__qualname__) != (component.__module__, component.__qualname__):
                raise NameTaken(f"{self.kind} {name!r} is {held.__module__}.{held.__qualname__}; {component.__module__} claims it too")
            component.name = name
            self._entries[name] = cast("type[T]", component)
            return component

        return claim

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of `name`. Raises UnknownComponent with the names that exist."""
        if name not in self._entries:
            raise UnknownComponent(kind=self.kind, name=name, known=", ".join(sorted(self._entries)))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def discover(self, package: str) -> None:
        """Import every module directly under `package`; a module that fails is recorded in `broken` with its error."""
        home = importlib.import_module(package)
        for module in pkgutil.iter_modules(home.__path__):
            self._load(f"{package}.{module.name}", lambda path=f"{package}.{module.name}": importlib.import_module(path))

    def discover_entry_points(self, group: str, allowed: Sequence[str]) -> None:
        """Load the entry points of `group` whose distribution is in `allowed`; others are recorded as broken, with the reason."""
        for entry in entry_points(group=group):
            distribution = entry.dist.name if entry.dist is not None else ""
            if distribution not in allowed:
                self.broken[entry.name] = f"distribution {distribution!r} is not in LETHE_PLUGINS__ALLOWED"
                continue
            self._load(entry.name, entry.load)

    def _load(self, label: str, load: Callable[[], object]) -> None:
        try:
            load()
        except NameTaken:
            raise
        except Exception as error:  # noqa: BLE001  a foreign plug-in may fail in any way; it is listed as broken, with its error
            self.broken[label] = f"{type(error).__name__}: {error}"
