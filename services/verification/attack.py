"""Attacks: attempts to tell the forgotten records from records the model never saw."""

from typing import ClassVar

from services.registry import Registry
from services.verification.metric import Metric


class Attack(Metric):
    """One attack. Scores are oriented so that higher means more member-like; the value is an AUC unless the docstring says otherwise."""

    paper: ClassVar[str]


ATTACKS: Registry[Attack] = Registry("attack")
