"""Quantile loss of forecasts."""

import numpy as np

from services.verification.metric import METRICS
from services.verification.predictions import Predictions
from services.verification.statistics.scores import Floats
from services.verification.target_error import TargetError


@METRICS.register("quantile_loss")
class QuantileLoss(TargetError):
    """Mean of max(q (y - f), (q - 1) (y - f)) over quantiles, steps and records: 0 exact. Without quantiles it is half the absolute error."""

    def errors(self, found: Predictions, levels: tuple[float, ...]) -> Floats:
        """Return the quantile loss of each record, (n,)."""
        gap = found.y[..., None] - found.all_levels
        level = np.asarray(levels)
        return np.maximum(level * gap, (level - 1) * gap).mean(axis=(1, 2))
