"""Regression: one real number for each record."""

from services.errors import InvalidInput
from services.learning.real_valued import RealValued
from services.learning.targets import Targets
from services.learning.task import TASKS


@TASKS.register("regression")
class Regression(RealValued):
    """One target (B,) per record; the model returns (B, 1), or (B, Q) with the quantile loss. By default the loss is the squared error."""

    modalities = frozenset({"image", "series", "tabular", "text"})
    own = Targets.model_validate({"loss": "mse"})

    def __init__(self, outputs: int, *, label_smoothing: float = 0.0, targets: Targets | None = None) -> None:
        """Raises InvalidInput: there are more outputs than one target needs."""
        super().__init__(outputs, label_smoothing=label_smoothing, targets=targets)
        if self.shape.steps != 1:
            raise InvalidInput(detail=f"a regression model predicts one target, not {self.shape.steps}")
