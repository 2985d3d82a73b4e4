"""The network of one version: the model's, unless the run that made the version changed a parameter of it.

Such a change is noted by the method (`architecture_parameters_changed`): a generator that is handed back without its discriminator is a network of
other parameters than the model was registered with, and every later job must build that one.
"""

from collections.abc import Mapping
from typing import Any

from services.db.tables import ModelVersion

CHANGED = "architecture_parameters_changed"
"""Name of the note by which a run says which parameters it changed, and to what."""


def parameters_of(version: ModelVersion | None, registered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture parameters of a version, which its manifest holds; those of the model, `registered`, where there is no manifest yet."""
    known = ((version.manifest or {}).get("architecture") or {}).get("parameters") if version is not None else None
    return dict(registered if known is None else known)


def after(parameters: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of what a run with these notes made from a version with `parameters`."""
    return {**parameters, **(notes.get(CHANGED) or {})}
